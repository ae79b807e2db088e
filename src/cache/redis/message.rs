//! What goes over the invalidation channel, in bytes.

use bytes::Bytes;

use super::broad::Entry;
use super::tags::Generations;
use super::wire::{Reader, put_purge};
use crate::cache::key::Key;
use crate::cache::purge::Purge;

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A URL or a tag was purged: its generations from now on.
    Purged { purge: Purge, soft: bool, generations: Generations },
    /// A prefix or everything was purged.
    Broad(Entry),
    /// A URL was changed by a request: this is its plain key.
    Invalidated(Key),
    /// Something has been stored under the key, or removed.
    Overwritten(Key),
    /// A lease ended: the response is not for sharing.
    Unshared(Key),
    /// A lease ended: somebody else may try.
    Failed(Key),
    /// The channel is alive.
    Heartbeat(u64),
}

/// News, and who tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) sender: u64,
    pub(super) news: News,
}

/// Who does not know a version ignores its messages. So a new one may add kinds, but must go on telling of purges and
/// invalidations in a way that the old one reads, or else take another channel and other names.
const VERSION: u8 = 1;

const PURGED: u8 = 1;
const BROAD: u8 = 2;
const INVALIDATED: u8 = 3;
const OVERWRITTEN: u8 = 4;
const UNSHARED: u8 = 5;
const FAILED: u8 = 6;
const HEARTBEAT: u8 = 7;

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        let begin = |kind| begin(self.sender, kind);
        let keyed = |kind, key: &Key| [&*begin(kind), key.as_bytes()].concat();
        match &self.news {
            News::Purged { purge, soft, generations: (hard, gentle) } => {
                let mut out = Self::purged(self.sender, purge, *soft);
                out.extend_from_slice(&hard.to_be_bytes());
                out.extend_from_slice(&gentle.to_be_bytes());
                out
            }
            News::Broad(entry) => [begin(BROAD), entry.encode()].concat(),
            News::Invalidated(key) => keyed(INVALIDATED, key),
            News::Overwritten(key) => keyed(OVERWRITTEN, key),
            News::Unshared(key) => keyed(UNSHARED, key),
            News::Failed(key) => keyed(FAILED, key),
            News::Heartbeat(nonce) => [&*begin(HEARTBEAT), &nonce.to_be_bytes()].concat(),
        }
    }

    /// [`News::Purged`] without the generations, which the script that makes them puts behind it: hard, soft, 16 bytes
    /// each.
    pub(super) fn purged(sender: u64, purge: &Purge, soft: bool) -> Vec<u8> {
        let mut out = begin(sender, PURGED);
        out.push(soft.into());
        put_purge(&mut out, purge);
        out
    }

    /// `None`: not one of ours.
    #[allow(clippy::needless_pass_by_value, reason = "as it comes out of the subscription")]
    pub(super) fn decode(input: Bytes) -> Option<Self> {
        let mut reader = Reader::new(&input);
        if reader.byte()? != VERSION {
            return None;
        }
        let sender = reader.number()?;
        let news = match reader.byte()? {
            PURGED => {
                let (soft, purge) = (reader.flag()?, reader.purge()?);
                News::Purged { purge, soft, generations: (reader.token()?, reader.token()?) }
            }
            BROAD => News::Broad(Entry::decode(reader.rest())?),
            INVALIDATED => News::Invalidated(Key::new(reader.rest())?),
            OVERWRITTEN => News::Overwritten(Key::new(reader.rest())?),
            UNSHARED => News::Unshared(Key::new(reader.rest())?),
            FAILED => News::Failed(Key::new(reader.rest())?),
            HEARTBEAT => News::Heartbeat(reader.number()?),
            _ => return None,
        };
        reader.is_empty().then_some(Self { sender, news })
    }
}

fn begin(sender: u64, kind: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.push(VERSION);
    out.extend_from_slice(&sender.to_be_bytes());
    out.push(kind);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::purge::{Purge, What};

    fn any_purge() -> impl Strategy<Value = Purge> {
        let url = || ("https?", "[a-z]{1,9}(:81)?", "/[!-~&&[^#\"<>\\\\^`{|}]]{0,40}");
        let text = |(scheme, host, target): (String, String, String)| format!("{scheme}://{host}{target}");
        prop_oneof![
            url().prop_map(move |parts| Purge::url(&text(parts)).unwrap()),
            url().prop_map(move |parts| Purge::prefix(&text(parts)).unwrap()),
            "\\PC{0,60}".prop_map(|tag| Purge::tag(&tag).unwrap()),
            Just(Purge::everything()),
        ]
    }

    fn any_news() -> impl Strategy<Value = News> {
        let key = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| Key::new(&bytes).unwrap());
        prop_oneof![
            (any_purge(), any::<bool>(), any::<(u128, u128)>()).prop_map(|(purge, soft, generations)| News::Purged {
                purge,
                soft,
                generations
            }),
            (any_purge(), any::<u128>(), any::<bool>())
                .prop_filter("broad", |(purge, ..)| matches!(purge.0, What::Prefix(_) | What::Everything))
                .prop_map(|(purge, token, soft)| News::Broad(Entry { token, purge, soft })),
            key().prop_map(News::Invalidated),
            key().prop_map(News::Overwritten),
            key().prop_map(News::Unshared),
            key().prop_map(News::Failed),
            any::<u64>().prop_map(News::Heartbeat),
        ]
    }

    fn has_a_length(news: &News) -> bool {
        matches!(news, News::Purged { .. } | News::Broad(_) | News::Heartbeat(_))
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(sender in any::<u64>(), news in any_news()) {
            let message = Message { sender, news };
            prop_assert_eq!(Message::decode(message.encode().into()), Some(message));
        }

        #[test]
        fn nothing_else_is_and_nothing_panics(
            sender in any::<u64>(),
            news in any_news(),
            cut in any::<prop::sample::Index>(),
            change in any::<(prop::sample::Index, u8)>(),
            noise in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let bytes = Message { sender, news: news.clone() }.encode();
            let mut other = bytes.clone();
            other[0] ^= 0x80;
            prop_assert_eq!(Message::decode(other.into()), None, "another version");
            if has_a_length(&news) {
                prop_assert_eq!(Message::decode(bytes[..cut.index(bytes.len())].to_vec().into()), None);
                prop_assert_eq!(Message::decode([&*bytes, &[0]].concat().into()), None);
            }
            let mut changed = bytes.clone();
            changed[change.0.index(bytes.len())] = change.1;
            let _ = Message::decode(changed.into());
            let _ = Message::decode(noise.clone().into());
            let _ = Message::decode([&[VERSION], &*noise].concat().into());
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let key = |length: usize| [&*begin(7, OVERWRITTEN), &vec![0; length]].concat();
        assert!(Message::decode(key(4096).into()).is_some());
        assert_eq!(Message::decode(key(4097).into()), None);
        let url = |length: usize| {
            let purge = Purge::url(&format!("http://a/{}", "b".repeat(length - 1))).unwrap();
            Message { sender: 7, news: News::Purged { purge, soft: false, generations: (1, 2) } }
        };
        assert_eq!(Message::decode(url(4096).encode().into()), Some(url(4096)));
        assert_eq!(Message::decode(url(4097).encode().into()), None);
    }
}
