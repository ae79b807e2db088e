//! The list of broad purges: by prefix, and of everything.

use std::collections::VecDeque;
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use ::redis::{Cmd, Value};

use super::channel::apply;
use super::hub::Hub;
use super::token::{Maker, token};
use super::wire::{Reader, put_purge};
use crate::cache::key::Key;
use crate::cache::purge::{Purge, Purged, Url, What};
use crate::redis::{Script, StoreError};

/// The newest are kept, in Redis and here. A response from before the oldest is void.
pub(super) const LENGTH: usize = 1024;

/// One broad purge, as it stands in Redis and in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) token: u128,
    pub(super) purge: Purge,
    pub(super) soft: bool,
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.token.to_be_bytes().to_vec();
        out.push(self.soft.into());
        put_purge(&mut out, &self.purge);
        out
    }

    /// `None`: not one of ours.
    pub(super) fn decode(input: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(input);
        let entry = Self { token: reader.token()?, soft: reader.flag()?, purge: reader.purge()? };
        let is_broad = matches!(entry.purge.0, What::Prefix(_) | What::Everything);
        (is_broad && reader.is_empty()).then_some(entry)
    }

    /// What cannot be read, perhaps another version's, purges everything: so that it purges enough.
    fn read(input: &[u8]) -> Self {
        Self::decode(input).unwrap_or_else(|| {
            let token = Reader::new(input).token().unwrap_or(0);
            Self { token, purge: Purge::everything(), soft: false }
        })
    }

    /// As [`Purges::verdict`](crate::cache::purges::Purges::verdict) of the same purge.
    fn verdict(&self, key: &Key) -> Purged {
        let named = match &self.purge.0 {
            What::Prefix(prefix) => is_under(key, prefix),
            _ => true,
        };
        match (named, self.soft) {
            (false, _) => Purged::No,
            (true, true) => Purged::Soft,
            (true, false) => Purged::Hard,
        }
    }
}

/// Whether the key's URL begins with that one.
pub(super) fn is_under(key: &Key, prefix: &Url) -> bool {
    let url = key.url();
    url.scheme == prefix.origin.scheme().as_bytes()
        && url.host == prefix.origin.host().as_bytes()
        && url.asked().starts_with(prefix.target.as_bytes())
}

/// This process's copy of the list, in order; right as long as the channel is alive.
#[derive(Default)]
pub(super) struct Broad {
    list: RwLock<List>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List {
    entries: VecDeque<Entry>,
    /// The newest, as it stands in Redis. Empty: the list is not known yet.
    last: Vec<u8>,
    /// How often the copy was made anew.
    made: u64,
}

/// What a reading of the list has brought.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// The copy was made anew meanwhile.
    Late,
    /// These came after what was known.
    Further(Vec<Entry>),
    /// What was known is not there any more: it was flushed, or has long been pushed out.
    Anew { before: bool },
}

impl List {
    /// What is in Redis: after the newest that is here (`known`), or all.
    fn read(&mut self, made: u64, known: bool, elements: &[Vec<u8>]) -> News {
        if self.made != made {
            return News::Late;
        }
        let Some(last) = elements.last() else { return News::Further(Vec::new()) };
        if !known {
            let before = !self.last.is_empty();
            self.entries.clear();
            self.made += 1;
            self.extend(elements.iter().map(|element| Entry::read(element)).collect(), last);
            return News::Anew { before };
        }
        // Another reading may have brought some of them.
        let further: Vec<_> =
            elements.iter().map(|element| Entry::read(element)).filter(|entry| !self.has(entry.token)).collect();
        if !further.is_empty() {
            self.extend(further.clone(), last);
        }
        News::Further(further)
    }

    fn extend(&mut self, entries: Vec<Entry>, last: &[u8]) {
        self.entries.extend(entries);
        let spare = self.entries.len().saturating_sub(LENGTH);
        self.entries.drain(..spare);
        last.clone_into(&mut self.last);
    }

    fn newest(&self) -> u128 {
        self.entries.back().map_or(0, |entry| entry.token)
    }

    fn has(&self, token: u128) -> bool {
        self.entries.iter().rev().any(|entry| entry.token == token)
    }

    fn verdict(&self, since: u128, key: &Key) -> Option<Purged> {
        if since == 0 {
            return None;
        }
        if since == self.newest() {
            return Some(Purged::No);
        }
        let at = self.entries.iter().rposition(|entry| entry.token == since)?;
        let later = self.entries.range(at + 1..);
        Some(later.fold(Purged::No, |verdict, entry| verdict.max(entry.verdict(key))))
    }
}

/// All after the element that is known, or all; where there is no list, it begins here, also in a Redis that is full: it
/// takes what follows a `DEL`.
static AFTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local at = ARGV[1] ~= '' and redis.call('LPOS', KEYS[1], ARGV[1], 'RANK', -1)
        if at then return {1, redis.call('LRANGE', KEYS[1], at + 1, -1)} end
        if redis.call('EXISTS', KEYS[1]) == 0 then
            redis.call('DEL', KEYS[1])
            redis.call('RPUSH', KEYS[1], ARGV[2])
        end
        return {0, redis.call('LRANGE', KEYS[1], 0, -1)}",
    )
});

impl Broad {
    fn list(&self) -> RwLockReadGuard<'_, List> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of the newest; 0: the list is not known yet.
    pub(super) fn newest(&self) -> u128 {
        self.list().newest()
    }

    pub(super) fn has(&self, token: u128) -> bool {
        self.list().has(token)
    }

    /// What broad purges after the one with token `since` did to the response under `key`. `None`: the list does not
    /// have `since`, so nobody can tell.
    pub(super) fn verdict(&self, since: u128, key: &Key) -> Option<Purged> {
        self.list().verdict(since, key)
    }

    /// Reads the list from Redis, where the channel does not keep the copy right. Begins it where there is none.
    ///
    /// What is new counts in this process's table of purges when this returns; where the list has lost what was known, a
    /// purge of everything does.
    pub(super) async fn refresh(&self, hub: &Hub, now: SystemTime) -> Result<(), StoreError> {
        loop {
            let (last, made) = {
                let list = self.list();
                (list.last.clone(), list.made)
            };
            let beginning = Entry { token: token(Maker::Purge, now), purge: Purge::everything(), soft: false };
            let reply = hub.redis.eval(&AFTER, &[&hub.names.broad()], &[&last, &beginning.encode()]).await?;
            let Some((known, elements)) = parse(reply) else { return Ok(()) };
            let news = self.list.write().unwrap_or_else(PoisonError::into_inner).read(made, known, &elements);
            match news {
                News::Late => continue,
                // The copy first, then the table: a lookup that does not see the one yet is older than the other.
                News::Further(entries) => entries.iter().for_each(|entry| apply(hub, &entry.purge, entry.soft, now)),
                News::Anew { before: true } => apply(hub, &Purge::everything(), false, now),
                News::Anew { before: false } => {}
            }
            return Ok(());
        }
    }

    /// Like [`refresh`](Self::refresh), but asks only for the newest if that is known.
    pub(super) async fn compare(&self, hub: &Hub, now: SystemTime) -> Result<(), StoreError> {
        let mut newest = Cmd::new();
        newest.arg("LINDEX").arg(hub.names.broad()).arg(-1);
        match hub.redis.query(&newest).await? {
            Value::BulkString(newest) if newest == self.list().last => Ok(()),
            _ => self.refresh(hub, now).await,
        }
    }
}

fn parse(reply: Value) -> Option<(bool, Vec<Vec<u8>>)> {
    let Value::Array(reply) = reply else { return None };
    let [known, elements] = <[Value; 2]>::try_from(reply).ok()?;
    let Value::Array(elements) = elements else { return None };
    let bytes = |element| if let Value::BulkString(bytes) = element { Some(bytes) } else { None };
    Some((known == Value::Int(1), elements.into_iter().map(bytes).collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use http::{Extensions, HeaderMap};
    use proptest::prelude::*;

    use super::*;
    use crate::cache::intake::Intake;
    use crate::cache::purges::Purges;

    fn key(url: &str) -> Key {
        Key::primary(&Intake::default(), &url.parse().unwrap(), &HeaderMap::new(), &Extensions::new()).unwrap()
    }

    fn entry(token: u128) -> Entry {
        Entry { token, purge: Purge::prefix("http://h/a").unwrap(), soft: false }
    }

    fn elements(tokens: impl IntoIterator<Item = u128>) -> Vec<Vec<u8>> {
        tokens.into_iter().map(|token| entry(token).encode()).collect()
    }

    fn tokens(list: &List) -> Vec<u128> {
        list.entries.iter().map(|entry| entry.token).collect()
    }

    #[test]
    fn a_reading_continues_the_copy_or_makes_it_anew() {
        let mut list = List::default();
        assert_eq!((list.newest(), list.verdict(0, &key("http://h/"))), (0, None), "not known yet");
        assert_eq!(list.read(0, false, &elements([1, 2])), News::Anew { before: false });
        assert_eq!(list.read(0, true, &elements([3])), News::Late, "it was about a list that is no more");
        assert_eq!(list.read(1, true, &elements([])), News::Further(vec![]));
        assert_eq!(list.read(1, true, &elements([3])), News::Further(vec![entry(3)]));
        assert_eq!(list.read(1, true, &elements([3, 4])), News::Further(vec![entry(4)]), "two readings at a time");
        assert_eq!(list.read(1, true, &elements([3])), News::Further(vec![]), "the older one comes last");
        assert_eq!((tokens(&list), &list.last), (vec![1, 2, 3, 4], &entry(4).encode()));
        assert_eq!(list.read(1, false, &elements([9])), News::Anew { before: true });
        assert_eq!((tokens(&list), list.newest(), list.has(4)), (vec![9], 9, false));
        assert_eq!(list.verdict(4, &key("http://i/")), None, "it may have been before anything");
    }

    #[test]
    fn the_newest_are_kept() {
        let mut list = List::default();
        let first = LENGTH as u128 + 2;
        list.read(0, false, &elements(1..first));
        list.read(1, true, &elements(first..first + 5));
        assert_eq!(tokens(&list), (7..first + 5).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_be_read_purges_everything() {
        let mut list = List::default();
        let longer = [&*entry(3).encode(), b"x"].concat();
        let tag = Entry { purge: Purge::tag("t").unwrap(), ..entry(4) };
        list.read(0, false, &[elements([1, 2]), vec![longer, tag.encode(), b"short".to_vec()]].concat());
        assert_eq!(tokens(&list), [1, 2, 3, 4, 0]);
        assert_eq!(list.verdict(3, &key("https://other/")), Some(Purged::Hard));
        assert_eq!(list.verdict(0, &key("https://other/")), None, "that is no token");
        assert_eq!(Entry::decode(&entry(7).encode()), Some(entry(7)));
    }

    fn any_url() -> impl Strategy<Value = String> {
        ("https?", "[gh]", "/[ab?]{0,3}").prop_map(|(scheme, host, target)| format!("{scheme}://{host}{target}"))
    }

    fn any_purge() -> impl Strategy<Value = Purge> {
        let prefix = any_url().prop_map(|url| Purge::prefix(&url).unwrap());
        prop_oneof![8 => prefix, 1 => Just(Purge::everything())]
    }

    proptest! {
        /// A response of another process is judged as one of this process would be.
        #[test]
        fn the_list_says_what_the_table_says(
            purges in proptest::collection::vec((any_purge(), any::<bool>()), 1..20),
            since in any::<prop::sample::Index>(),
            url in any_url(),
        ) {
            let now = SystemTime::now();
            let (mut list, table, since) = (List::default(), Purges::new(), since.index(purges.len()));
            let mut stamp = 0;
            let mut elements = Vec::new();
            for (number, (purge, soft)) in purges.iter().enumerate() {
                table.purge(purge, *soft, now);
                if number == since {
                    stamp = table.stamp(now);
                }
                elements.push(Entry { token: number as u128 + 1, purge: purge.clone(), soft: *soft }.encode());
            }
            list.read(0, false, &elements);
            let expected = table.verdict(stamp, &key(&url), &[]);
            prop_assert_eq!(list.verdict(since as u128 + 1, &key(&url)), Some(expected));
        }
    }
}
