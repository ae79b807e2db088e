//! Which purges there have been: a table of fixed size that answers for any stored response, without a lock or a scan.
//!
//! Every forwarded request and every purge takes a stamp, each greater than all before. A purge notes its stamp under its
//! name; a response is purged if one of its own names (its URL, the beginnings of that, its tags) was noted since its stamp.
//! So a purge costs the same whatever is stored, and also finds what is stored only later, by a fetch that began before
//! it.
//!
//! [`Names`] forgets none of them, but dates the oldest ones too late once there are very many. A response is spared by
//! purges older than itself, so what counts is how many different names were purged since: a response older than 400 000
//! of them is lost needlessly once in 5 000 times, than 860 000 once in 40; for each of its names.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::key::Key;
use super::names::{Name, Names, Newest};
use super::purge::{MAX_PREFIX, Purge, Purged, Url, What};

/// The last byte of a name keeps URLs, prefixes and tags apart.
const URL: &[u8] = &[0];
const PREFIX: &[u8] = &[1];
const TAG: &[u8] = &[2];

pub(super) struct Purges {
    /// The last stamp that was given out.
    clock: AtomicU64,
    /// The stamp of the newest purge: what is newer needs no look at the table.
    newest: AtomicU64,
    /// A secret from whoever might choose a URL so that its purges find others.
    seed: u64,
    table: OnceLock<Table>,
}

/// Made for the first purge.
struct Table {
    everything: Newest,
    /// The newest purge of a prefix of this length.
    prefixes: Box<[AtomicU64]>,
    names: Names,
}

impl Table {
    fn new() -> Self {
        let prefixes = (0..=MAX_PREFIX).map(|_| AtomicU64::new(0)).collect();
        Self { everything: Newest::default(), prefixes, names: Names::new() }
    }
}

impl Purges {
    pub(super) fn new() -> Self {
        Self {
            clock: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            seed: RandomState::new().hash_one(()),
            table: OnceLock::new(),
        }
    }

    /// The time in microseconds of the Unix era, but greater than every stamp before.
    pub(super) fn stamp(&self, now: SystemTime) -> u64 {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        // A clock set to the end of time leaves room to count on.
        let now = u64::try_from(now).unwrap_or(u64::MAX).min(u64::MAX / 2);
        self.clock.fetch_max(now, Ordering::AcqRel);
        self.clock.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Once it returns, [`verdict`](Self::verdict) knows of it: for everything stamped before.
    pub(super) fn purge(&self, Purge(what): &Purge, soft: bool, now: SystemTime) {
        let table = self.table.get_or_init(Table::new);
        let stamp = self.stamp(now);
        match what {
            What::Everything => table.everything.raise(stamp, soft),
            What::Tag(tag) => table.names.note(self.tag(tag), stamp, soft),
            What::Url(url) => table.names.note(self.url(url).feed(URL), stamp, soft),
            What::Prefix(url) => {
                table.names.note(self.url(url).feed(PREFIX), stamp, soft);
                if let Some(newest) = table.prefixes.get(url.target.len()) {
                    newest.fetch_max(stamp, Ordering::Relaxed);
                }
            }
        }
        // Last, and in a chain of such writes: whoever reads it, or a newer one, sees all of the above.
        self.newest.fetch_max(stamp, Ordering::AcqRel);
    }

    /// What purges did to a response of this stamp, key and tags.
    pub(super) fn verdict(&self, stamp: u64, key: &Key, tags: &[Box<str>]) -> Purged {
        // 0 stands for no purge.
        let stamp = stamp.max(1);
        if self.epoch() < stamp { Purged::No } else { self.look_up(stamp, key, tags) }
    }

    /// The newest purge's stamp: a fetch with a lower one began before it.
    pub(super) fn epoch(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    fn look_up(&self, stamp: u64, key: &Key, tags: &[Box<str>]) -> Purged {
        let Some(table) = self.table.get() else { return Purged::No };
        let url = key.url();
        let (scheme, host, target) = (url.scheme, url.host, url.asked());
        let mut name = self.origin(scheme, host);
        let mut verdict = table.everything.verdict(stamp);
        for (length, byte) in (1..).zip(target) {
            name = name.feed(&[*byte]);
            if table.prefixes.get(length).is_some_and(|newest| newest.load(Ordering::Relaxed) >= stamp) {
                verdict = verdict.max(table.names.verdict(name.feed(PREFIX), stamp));
            }
        }
        verdict = verdict.max(table.names.verdict(name.feed(URL), stamp));
        tags.iter().fold(verdict, |verdict, tag| verdict.max(table.names.verdict(self.tag(tag), stamp)))
    }

    fn url(&self, Url { origin, target }: &Url) -> Name {
        self.origin(origin.scheme().as_bytes(), origin.host().as_bytes()).feed(target.as_bytes())
    }

    fn origin(&self, scheme: &[u8], host: &[u8]) -> Name {
        Name::new(self.seed).feed(scheme).feed(&[0]).feed(host).feed(&[0])
    }

    fn tag(&self, tag: &str) -> Name {
        Name::new(self.seed).feed(tag.as_bytes()).feed(TAG)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    #[cfg(feature = "axum")]
    use http::HeaderValue;
    use http::{Extensions, HeaderMap};
    use proptest::prelude::*;

    use super::super::intake::Intake;
    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn key(url: &str) -> Key {
        Key::primary(&Intake::default(), &url.parse().unwrap(), &HeaderMap::new(), &Extensions::new()).unwrap()
    }

    fn tags(tags: &[&str]) -> Vec<Box<str>> {
        tags.iter().map(|tag| Box::from(*tag)).collect()
    }

    fn url(url: &str) -> Purge {
        Purge::url(url).unwrap()
    }

    fn prefix(url: &str) -> Purge {
        Purge::prefix(url).unwrap()
    }

    /// The verdict on an older response with the tags `a` and `b`.
    fn after(purge: &Purge, stored: &str) -> Purged {
        let purges = Purges::new();
        let older = purges.stamp(NOW);
        purges.purge(purge, false, NOW);
        let newer = purges.stamp(NOW);
        assert_eq!(purges.verdict(newer, &key(stored), &tags(&["a", "b"])), Purged::No);
        purges.verdict(older, &key(stored), &tags(&["a", "b"]))
    }

    #[test]
    fn a_purge_finds_what_it_names() {
        for (purge, stored, found) in [
            (url("https://h/a"), "https://h/a", true),
            (url("https://H:443/a"), "https://h/a", true),
            (url("https://h/a"), "http://h/a", false),
            (url("https://h/a"), "https://i/a", false),
            (url("https://h/a"), "https://h:444/a", false),
            (url("https://h/a"), "https://h/a?", false),
            (url("https://h/a"), "https://h/a/", false),
            (url("https://h/a"), "https://h/A", false),
            (url("https://h/"), "https://h/a", false),
            (url("http://sh/a"), "https://h/a", false),
            (prefix("https://h"), "https://h/a?b", true),
            (prefix("https://h/a"), "https://h/a", true),
            (prefix("https://h/a"), "https://h/about", true),
            (prefix("https://h/a?b"), "https://h/a?bc", true),
            (prefix("https://h/a/"), "https://h/a", false),
            (prefix("https://h/a"), "http://h/a", false),
            (prefix("https://h/a"), "https://ha/a", false),
            (prefix("https://h"), "https://h:444/", false),
            (Purge::tag("b").unwrap(), "https://h/a", true),
            (Purge::tag("c").unwrap(), "https://h/a", false),
            (Purge::tag("").unwrap(), "https://h/a", false),
            (Purge::tag("ab").unwrap(), "https://h/a", false),
            (Purge::everything(), "https://h/a", true),
        ] {
            assert_eq!(after(&purge, stored), if found { Purged::Hard } else { Purged::No }, "{purge:?} {stored}");
        }
    }

    #[test]
    fn the_longest_prefix_is_found() {
        let path = "b".repeat(MAX_PREFIX - 1);
        assert_eq!(after(&prefix(&format!("http://h/{path}")), &format!("http://h/{path}c")), Purged::Hard);
    }

    #[test]
    fn variants_go_with_their_url() {
        let purges = Purges::new();
        let variant = key("http://h/a").extend(|parts| parts.push(b"accept")).unwrap();
        let older = purges.stamp(NOW);
        assert_eq!(purges.verdict(older, &variant, &[]), Purged::No);
        purges.purge(&url("http://h/a"), false, NOW);
        assert_eq!(purges.verdict(older, &variant, &[]), Purged::Hard);
    }

    #[cfg(feature = "axum")]
    #[test]
    fn under_a_nested_router_the_client_s_url_counts() {
        let (purges, mut extensions) = (Purges::new(), Extensions::new());
        extensions.insert(axum::extract::OriginalUri("/api/a?b".parse().unwrap()));
        let headers = [(http::header::HOST, HeaderValue::from_static("h"))].into_iter().collect();
        let key = Key::primary(&Intake::default(), &"/a?b".parse().unwrap(), &headers, &extensions).unwrap();
        let older = purges.stamp(NOW);
        purges.purge(&url("http://h/a?b"), false, NOW);
        assert_eq!(purges.verdict(older, &key, &[]), Purged::No);
        purges.purge(&url("http://h/api/a?b"), true, NOW);
        assert_eq!(purges.verdict(older, &key, &[]), Purged::Soft);
        purges.purge(&prefix("http://h/api/"), false, NOW);
        assert_eq!(purges.verdict(older, &key, &[]), Purged::Hard);
    }

    #[test]
    fn stamps_follow_the_clock_but_never_repeat() {
        let purges = Purges::new();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let stamps = [at(9), at(9), at(7), at(10), UNIX_EPOCH - Duration::from_secs(1)].map(|now| purges.stamp(now));
        assert_eq!(stamps, [9_000_001, 9_000_002, 9_000_003, 10_000_001, 10_000_002]);
    }

    #[test]
    fn a_response_without_a_stamp_is_older_than_any_purge() {
        let purges = Purges::new();
        assert_eq!(purges.verdict(0, &key("http://h/"), &[]), Purged::No);
        purges.purge(&url("http://h/other"), false, NOW);
        assert_eq!(purges.verdict(0, &key("http://h/"), &[]), Purged::No);
        purges.purge(&url("http://h/"), false, NOW);
        assert_eq!(purges.verdict(0, &key("http://h/"), &[]), Purged::Hard);
    }

    /// A stored response, and what all purges since have done to it, one by one.
    #[derive(Debug)]
    struct Stored {
        url: String,
        tags: Vec<Box<str>>,
        stamp: u64,
        expected: Purged,
    }

    impl Stored {
        fn is_named_by(&self, Purge(what): &Purge) -> bool {
            let absolute = |url: &Url| format!("{}{}", url.origin, url.target);
            match what {
                What::Everything => true,
                What::Tag(tag) => self.tags.contains(tag),
                What::Url(url) => self.url == absolute(url),
                What::Prefix(url) => self.url.starts_with(&absolute(url)),
            }
        }
    }

    fn any_url() -> impl Strategy<Value = String> {
        ("https?", "[gh]", "/[ab?]{0,3}").prop_map(|(scheme, host, target)| format!("{scheme}://{host}{target}"))
    }

    fn any_purge() -> impl Strategy<Value = Purge> {
        prop_oneof![
            6 => any_url().prop_map(|text| url(&text)),
            3 => any_url().prop_map(|text| prefix(&text)),
            3 => "[ab]{0,2}".prop_map(|tag| Purge::tag(&tag).unwrap()),
            1 => Just(Purge::everything()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn as_if_every_response_were_looked_at(
            steps in proptest::collection::vec(
                prop_oneof![
                    (any_url(), proptest::collection::vec("[ab]{0,2}", 0..3)).prop_map(Ok),
                    (any_purge(), any::<bool>()).prop_map(Err),
                ],
                1..60,
            ),
        ) {
            let (purges, mut stored) = (Purges::new(), Vec::new());
            for step in steps {
                let epoch = purges.epoch();
                match step {
                    Ok((url, tags)) => {
                        let tags = tags.into_iter().map(Into::into).collect();
                        stored.push(Stored { url, tags, stamp: purges.stamp(NOW), expected: Purged::No });
                        prop_assert_eq!(epoch, purges.epoch());
                    }
                    Err((purge, soft)) => {
                        purges.purge(&purge, soft, NOW);
                        let result = if soft { Purged::Soft } else { Purged::Hard };
                        for one in stored.iter_mut().filter(|one| one.is_named_by(&purge)) {
                            one.expected = one.expected.max(result);
                        }
                        prop_assert!(stored.iter().all(|one| one.stamp < purges.epoch()) && epoch < purges.epoch());
                    }
                }
                for one in &stored {
                    prop_assert_eq!(purges.verdict(one.stamp, &key(&one.url), &one.tags), one.expected, "{:?}", one);
                }
            }
        }
    }

    #[test]
    fn threads_see_their_own_purges_at_once_and_no_others() {
        const ROUNDS: u64 = 3_000;
        let purges = Arc::new(Purges::new());
        // Before any purge, and purged by all: the verdict on it never goes back.
        let first = purges.stamp(NOW);
        let work = |thread: u64| {
            let purges = purges.clone();
            move || {
                let (own, tags) = (key(&format!("http://h/{thread}/x")), tags(&[&format!("tag {thread}")]));
                let ways = [
                    url(&format!("http://h/{thread}/x")),
                    prefix(&format!("http://h/{thread}/")),
                    Purge::tag(&format!("tag {thread}")).unwrap(),
                ];
                let mut seen = Purged::No;
                for (round, way) in (0..ROUNDS).zip(ways.iter().cycle()) {
                    let before = purges.stamp(NOW);
                    assert_eq!(purges.verdict(before, &own, &tags), Purged::No);
                    purges.purge(way, round % 2 == 0, NOW);
                    let expected = if round % 2 == 0 { Purged::Soft } else { Purged::Hard };
                    assert_eq!(purges.verdict(before, &own, &tags), expected);
                    assert_eq!(purges.verdict(purges.stamp(NOW), &own, &tags), Purged::No);
                    purges.purge(&url("http://h/all"), round != ROUNDS / 2, NOW);
                    assert!(purges.verdict(before, &key("http://h/all"), &[]) >= Purged::Soft);
                    let now = purges.verdict(first, &key("http://h/all"), &[]);
                    assert!(now >= seen && now >= Purged::Soft);
                    seen = now;
                }
            }
        };
        std::thread::scope(|scope| (0..4).map(work).for_each(|work| drop(scope.spawn(work))));
        assert_eq!(purges.verdict(first, &key("http://h/all"), &[]), Purged::Hard);
    }
}
