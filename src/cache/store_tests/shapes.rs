//! One record after another.

use super::samples::{expired, formless, response, vary};
use super::{Suite, samples};

/// A store may forget, but what it forgets every time it does not store.
const TRIES: usize = 8;
/// Enough for a body; larger ones only take time.
const LONG: usize = 1 << 20;

pub(super) async fn every_shape_comes_back_equal(suite: &Suite) {
    let longest = suite.store.max_object_bytes().min(LONG);
    for (shape, record) in suite.samples.shapes(longest) {
        let mut kept = false;
        for _ in 0..TRIES {
            let key = suite.samples.key();
            suite.expect_nothing(&key, "a key that was never put").await;
            suite.put(&key, &record).await;
            kept |= suite.expect(&key, &record, shape).await;
            suite.expect(&key, &record, "a second read").await;
        }
        assert!(kept, "the store never keeps {shape}");
    }
}

pub(super) async fn a_put_replaces(suite: &Suite) {
    let key = suite.samples.key();
    for _ in 0..50 {
        let record = suite.samples.small();
        suite.put(&key, &record).await;
        suite.expect(&key, &record, "a put must replace what was there").await;
        let spec = vary(suite.samples.number(), &[]);
        suite.put(&key, &spec).await;
        suite.expect(&key, &spec, "a put must replace a record of another kind").await;
    }
    for useless in [expired, formless] {
        let record = useless(suite.samples.number());
        suite.put(&key, &suite.samples.small()).await;
        suite.put(&key, &record).await;
        let rule = "a put must replace what was there, also with what the store does not keep";
        suite.expect(&key, &record, rule).await;
    }
}

pub(super) async fn a_remove_forgets(suite: &Suite) {
    let (key, neighbour) = (suite.samples.key(), suite.samples.key());
    let other = suite.samples.small();
    suite.put(&neighbour, &other).await;
    for _ in 0..50 {
        suite.put(&key, &suite.samples.small()).await;
        suite.remove(&key).await;
        suite.expect_nothing(&key, "a remove must forget what was there").await;
        suite.remove(&key).await;
        suite.expect_nothing(&key, "a remove of nothing must do nothing").await;
    }
    suite.expect(&neighbour, &other, "a remove of one key must leave others as they are").await;
}

pub(super) async fn a_discard_harms_nobody(suite: &Suite) {
    let key = suite.samples.key();
    for _ in 0..20 {
        let (old, new) = (suite.samples.small(), suite.samples.small());
        suite.put(&key, &old).await;
        let seen = suite.get(&key).await;
        suite.put(&key, &new).await;
        suite.store.discard(&key, seen.as_ref().unwrap_or(&old));
        suite.expect(&key, &new, "a discard of what was replaced must change nothing").await;
        suite.store.discard(&key, &new);
        suite.expect(&key, &new, "a discard must not bring anything back").await;
    }
}

pub(super) async fn usage_and_clear_are_sane(suite: &Suite) {
    let key = suite.samples.key();
    let record = samples::response(suite.samples.number(), 1000);
    for _ in 0..TRIES {
        suite.put(&key, &record).await;
        let usage = suite.store.usage();
        if suite.expect(&key, &record, "a small record").await {
            let counted = usage.is_none_or(|usage| usage.entries > 0 && usage.bytes > 0);
            assert!(counted, "something is stored, but the usage is {usage:?}");
        }
    }
    suite.store.clear();
    suite.expect(&key, &record, "after a clear").await;
    let again = response(suite.samples.number(), 10);
    suite.put(&key, &again).await;
    suite.expect(&key, &again, "a put after a clear").await;
}
