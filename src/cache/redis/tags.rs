//! The generations of tags that this process knows: right as long as the channel is alive.
//!
//! Beside the generations of a tag stands since when this process has known them: what was forwarded later is stored
//! under them. A purge that comes between the asking and the noting wins: what was asked for is not noted then.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use xxhash_rust::xxh3::xxh3_128;

use crate::cache::purges::Purges;
use crate::cache::sync::{Mutex, lock};

/// Hard and soft.
pub(super) type Generations = (u128, u128);

/// 6 MiB or so.
const MAX_TAGS: usize = 65_536;
const STRIPES: usize = 64;

/// How long Redis is not asked again whether it still has what a write goes by: it may have been evicted.
const ASK_AGAIN: Duration = Duration::from_secs(60);

pub(super) struct Tags {
    known: Cache<u128, Known>,
    /// How often a purge has changed one of the tags of a stripe, or all were forgotten.
    changes: Box<[Mutex<u64>]>,
    purges: Arc<Purges>,
}

/// A tag's generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    generations: Generations,
    /// The stamp since when.
    since: u64,
    /// When Redis was asked last for a write, and until when it keeps them at least.
    kept: Option<(SystemTime, SystemTime)>,
}

/// What is to be noted, unless a purge comes in between.
pub(super) struct Asked {
    stamp: u64,
    changes: Vec<u64>,
}

impl Tags {
    /// `purges` gives the stamps.
    pub(super) fn new(purges: Arc<Purges>) -> Self {
        let changes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { known: Cache::new(MAX_TAGS), changes, purges }
    }

    pub(super) fn get(&self, tag: &str) -> Option<Generations> {
        self.known.get(&name(tag)).map(|known| known.generations)
    }

    /// The generations, if they have been known here since before `stamp`.
    pub(super) fn known_before(&self, tag: &str, stamp: u64) -> Option<Generations> {
        self.known.get(&name(tag)).filter(|known| known.since < stamp).map(|known| known.generations)
    }

    /// Whether Redis has told a short while ago that it keeps these until `until`.
    pub(super) fn are_kept(&self, tags: &[Box<str>], now: SystemTime, until: SystemTime) -> bool {
        let is_kept = |(asked, lasts): (SystemTime, SystemTime)| {
            now.duration_since(asked).is_ok_and(|since| since < ASK_AGAIN) && lasts >= until
        };
        tags.iter().all(|tag| self.known.get(&name(tag)).and_then(|known| known.kept).is_some_and(is_kept))
    }

    /// Call before Redis is asked.
    pub(super) fn ask<'a>(&self, tags: impl Iterator<Item = &'a str>) -> Asked {
        let changes = tags.map(|tag| self.stripe(name(tag)).map_or(0, |stripe| *lock(stripe))).collect();
        Asked { stamp: self.purges.stamp(SystemTime::now()), changes }
    }

    /// Notes what Redis has answered to a question about these tags.
    pub(super) fn learn<'a>(
        &self,
        asked: &Asked,
        answers: impl Iterator<Item = (&'a str, Option<Generations>)>,
        kept: Option<(SystemTime, SystemTime)>,
    ) {
        for ((tag, generations), changes) in answers.zip(&asked.changes) {
            let (Some(generations), name) = (generations, name(tag)) else { continue };
            let Some(stripe) = self.stripe(name) else { continue };
            let now = lock(stripe);
            if *now != *changes {
                continue;
            }
            let before = self.known.get(&name).filter(|known| known.generations == generations);
            let since = before.map_or(asked.stamp, |known| known.since);
            let kept = kept.or(before.and_then(|known| known.kept));
            self.known.insert(name, Known { generations, since, kept });
        }
    }

    /// A purge has given the tag new ones.
    pub(super) fn purged(&self, tag: &str, generations: Generations) {
        let name = name(tag);
        let Some(stripe) = self.stripe(name) else { return };
        let mut changes = lock(stripe);
        *changes += 1;
        if self.known.get(&name).is_none_or(|known| known.generations != generations) {
            let since = self.purges.stamp(SystemTime::now());
            self.known.insert(name, Known { generations, since, kept: None });
        }
    }

    /// Asks for it once more.
    pub(super) fn unlearn(&self, tag: &str) {
        let name = name(tag);
        let Some(stripe) = self.stripe(name) else { return };
        *lock(stripe) += 1;
        self.known.remove(&name);
    }

    /// The channel was lost: nothing that is here counts any more.
    pub(super) fn forget(&self) {
        for stripe in &self.changes {
            *lock(stripe) += 1;
        }
        self.known.clear();
    }

    fn stripe(&self, name: u128) -> Option<&Mutex<u64>> {
        self.changes.get(usize::try_from(name % STRIPES as u128).unwrap_or(0))
    }
}

fn name(tag: &str) -> u128 {
    xxh3_128(tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn tags() -> Tags {
        Tags::new(Arc::new(Purges::new()))
    }

    fn learn(tags: &Tags, asked: &Asked, tag: &str, generations: Generations) {
        tags.learn(asked, [(tag, Some(generations))].into_iter(), None);
    }

    fn stamp(tags: &Tags) -> u64 {
        tags.purges.stamp(SystemTime::now())
    }

    #[test]
    fn what_redis_answers_is_known_since_it_was_asked() {
        let tags = tags();
        let before = stamp(&tags);
        let asked = tags.ask(["a", "b"].into_iter());
        let between = stamp(&tags);
        tags.learn(&asked, [("a", Some((1, 2))), ("b", None)].into_iter(), None);
        assert_eq!((tags.get("a"), tags.get("b"), tags.get("c")), (Some((1, 2)), None, None));
        assert_eq!((tags.known_before("a", before), tags.known_before("a", between)), (None, Some((1, 2))));
        // The same once more: it has been known all the time.
        learn(&tags, &tags.ask(["a"].into_iter()), "a", (1, 2));
        assert_eq!(tags.known_before("a", between), Some((1, 2)));
        learn(&tags, &tags.ask(["a"].into_iter()), "a", (1, 3));
        assert_eq!((tags.known_before("a", between), tags.get("a")), (None, Some((1, 3))));
    }

    #[test]
    fn a_purge_wins_over_what_was_asked_before_it() {
        for change in [(|tags| tags.purged("a", (9, 9))) as fn(&Tags), |tags| tags.unlearn("a"), Tags::forget] {
            let tags = tags();
            let asked = tags.ask(["a"].into_iter());
            change(&tags);
            let after = tags.get("a");
            assert_ne!(after, Some((1, 1)));
            learn(&tags, &asked, "a", (1, 1));
            assert_eq!(tags.get("a"), after);
            learn(&tags, &tags.ask(["a"].into_iter()), "a", (3, 3));
            assert_eq!(tags.get("a"), Some((3, 3)));
        }
    }

    #[test]
    fn the_message_of_a_purge_that_is_known_already_changes_nothing() {
        let tags = tags();
        learn(&tags, &tags.ask(["a"].into_iter()), "a", (9, 9));
        let then = stamp(&tags);
        tags.purged("a", (9, 9));
        assert_eq!(tags.known_before("a", then), Some((9, 9)));
        tags.purged("a", (10, 9));
        assert_eq!((tags.known_before("a", then), tags.get("a")), (None, Some((10, 9))));
        assert_eq!(tags.known_before("a", stamp(&tags)), Some((10, 9)));
    }

    #[test]
    fn redis_is_asked_again_for_writes_after_a_minute_or_for_a_longer_time() {
        let (tags, now) = (tags(), UNIX_EPOCH + Duration::from_secs(1_000_000));
        let (both, minute) = ([Box::from("a"), Box::from("b")], Duration::from_secs(60));
        let until = now + 10 * minute;
        assert!(tags.are_kept(&[], now, until) && !tags.are_kept(&both, now, until));
        let answers = || ["a", "b"].into_iter().zip([Some((1, 1)), Some((2, 2))]);
        tags.learn(&tags.ask(["a", "b"].into_iter()), answers(), Some((now, until)));
        assert!(
            tags.are_kept(&both, now, until) && tags.are_kept(&both, now + minute - Duration::from_millis(1), until)
        );
        assert!(!tags.are_kept(&both, now + minute, until), "a minute ago");
        assert!(!tags.are_kept(&both, now, until + Duration::from_millis(1)), "not long enough");
        assert!(!tags.are_kept(&both, now - minute, until), "by a clock that went back");
        tags.learn(&tags.ask(["a", "b"].into_iter()), answers(), None);
        assert!(tags.are_kept(&both, now, until), "a reading takes nothing away");
        tags.purged("b", (3, 3));
        assert!(!tags.are_kept(&both, now, until));
    }

    #[test]
    fn the_mirror_is_bounded() {
        let tags = tags();
        for n in 0..MAX_TAGS + 1000 {
            tags.purged(&n.to_string(), (1, 1));
        }
        assert!(tags.known.len() <= MAX_TAGS, "{}", tags.known.len());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(usize),
        Answer(usize),
        Purge(usize),
        Forget,
    }

    proptest! {
        /// Redis and the mirror, with answers that come late: what is mirrored is what Redis has, but for purges whose
        /// message is still under way; here, none is.
        #[test]
        fn the_mirror_is_right_whatever_comes_late(steps in proptest::collection::vec(
            prop_oneof![
                4 => (0usize..3).prop_map(Step::Ask),
                4 => any::<usize>().prop_map(Step::Answer),
                2 => (0usize..3).prop_map(Step::Purge),
                1 => Just(Step::Forget),
            ], 1..60,
        )) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let (tags, mut redis, mut open, mut next) = (tags(), [(0, 0); 3], Vec::new(), 0);
            for step in steps {
                match step {
                    Step::Ask(tag) => open.push((tag, tags.ask([NAMES[tag]].into_iter()), redis[tag])),
                    Step::Answer(which) if !open.is_empty() => {
                        let (tag, asked, found) = open.remove(which % open.len());
                        learn(&tags, &asked, NAMES[tag], found);
                    }
                    Step::Answer(_) => {}
                    Step::Purge(tag) => {
                        next += 1;
                        redis[tag] = (next, 0);
                        tags.purged(NAMES[tag], redis[tag]);
                    }
                    Step::Forget => tags.forget(),
                }
                for (name, has) in NAMES.iter().zip(redis) {
                    prop_assert!(tags.get(name).is_none_or(|known| known == has));
                }
            }
        }
    }
}
