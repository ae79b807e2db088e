//! One breaker per server: a single one, or one per master of a cluster.

use std::time::Duration;

use ::redis::Value;
use tokio::time::Instant;

use super::breaker::Breaker;

const SLOTS: u16 = 16384;

/// The slots up to `last`, after those of the range before, belong to `node`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    last: u16,
    node: usize,
}

#[derive(Debug)]
pub(super) struct Nodes {
    ranges: Vec<Range>,
    breakers: Vec<Breaker>,
    /// When the map was learned last.
    charted: Option<Instant>,
}

impl Nodes {
    /// One server, or a cluster whose map is not known yet.
    pub(super) fn single(now: Instant) -> Self {
        Self { ranges: Vec::new(), breakers: vec![Breaker::new(now)], charted: None }
    }

    /// The server that `key` lives on.
    pub(super) fn of(&self, key: &[u8]) -> usize {
        if self.ranges.is_empty() { 0 } else { self.of_slot(slot(key)) }
    }

    /// The server that owns `slot`.
    pub(super) fn of_slot(&self, slot: u16) -> usize {
        self.ranges.get(self.ranges.partition_point(|range| range.last < slot)).map_or(0, |range| range.node)
    }

    pub(super) fn breaker(&mut self, node: usize) -> Option<&mut Breaker> {
        self.breakers.get_mut(node)
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Breaker> {
        self.breakers.iter_mut()
    }

    pub(super) fn open_count(&self) -> usize {
        self.breakers.iter().filter(|breaker| breaker.is_open()).count()
    }

    /// The servers whose breakers are open, each with a key that it serves.
    pub(super) fn open(&self) -> Vec<(usize, String)> {
        let open = self.breakers.iter().enumerate().filter(|(_, breaker)| breaker.is_open());
        open.filter_map(|(node, _)| Some((node, self.key_of(node)?))).collect()
    }

    /// A key of each master of a cluster. Empty while its map is not known.
    pub(super) fn masters(&self) -> Vec<String> {
        let count = if self.ranges.is_empty() { 0 } else { self.breakers.len() };
        (0..count).filter_map(|node| self.key_of(node)).collect()
    }

    /// A key that the server serves.
    fn key_of(&self, node: usize) -> Option<String> {
        (0..1_u32 << 20).map(|n| n.to_string()).find(|key| self.of(key.as_bytes()) == node)
    }

    /// Whether the map is known, and not older than `age`.
    pub(super) fn is_charted(&self, now: Instant, age: Duration) -> bool {
        !self.ranges.is_empty() && self.charted.is_some_and(|charted| now.saturating_duration_since(charted) < age)
    }

    /// A slot of a master whose breaker is closed.
    pub(super) fn well(&self) -> Option<u16> {
        let well =
            self.ranges.iter().find(|range| self.breakers.get(range.node).is_some_and(|breaker| !breaker.is_open()));
        well.map(|range| range.last)
    }

    /// Takes over a map. Where it has changed, every breaker starts anew.
    pub(super) fn adopt(&mut self, ranges: Vec<Range>, now: Instant) {
        self.charted = Some(now);
        if ranges != self.ranges {
            let count = ranges.iter().map(|range| range.node + 1).max().unwrap_or(1);
            self.breakers = (0..count).map(|_| Breaker::new(now)).collect();
            self.ranges = ranges;
        }
    }
}

/// `CLUSTER SLOTS`: per range its first slot, its last slot, the master's address and identity, the replicas. Each server
/// lists them in an order of its own; here, masters are numbered in the order of their slots.
pub(super) fn parse(reply: &Value) -> Option<Vec<Range>> {
    let Value::Array(entries) = reply else { return None };
    let mut owners = entries.iter().map(owner).collect::<Option<Vec<_>>>()?;
    owners.sort_by_key(|(last, _)| *last);
    let mut masters = Vec::new();
    let numbered = owners.into_iter().map(|(last, master)| {
        let known = masters.iter().position(|known| *known == master);
        let node = known.unwrap_or_else(|| {
            masters.push(master);
            masters.len() - 1
        });
        Range { last, node }
    });
    Some(numbered.collect())
}

/// Host, port and identity: servers without an address of their own differ in the last one only.
type Master<'a> = (&'a Value, &'a Value, Option<&'a Value>);

/// A range's last slot, and its master.
fn owner(entry: &Value) -> Option<(u16, Master<'_>)> {
    let Value::Array(entry) = entry else { return None };
    let [_, Value::Int(last), Value::Array(master), ..] = entry.as_slice() else { return None };
    let [host, port, rest @ ..] = master.as_slice() else { return None };
    Some((u16::try_from(*last).ok()?, (host, port, rest.first())))
}

/// The hash slot of a key: CRC-16/XMODEM over the key, or over its hash tag (Redis cluster specification).
fn slot(key: &[u8]) -> u16 {
    let mut crc = 0u16;
    for byte in hash_tag(key).unwrap_or(key) {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc % SLOTS
}

fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let (_, tail) = key.split_at_checked(key.iter().position(|byte| *byte == b'{')? + 1)?;
    let (tag, _) = tail.split_at_checked(tail.iter().position(|byte| *byte == b'}')?)?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: i64, last: i64, port: i64) -> Value {
        let id = port.to_string().into_bytes();
        let master = vec![Value::BulkString(b"h".to_vec()), Value::Int(port), Value::BulkString(id)];
        Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(master)])
    }

    fn adopt(nodes: &mut Nodes, reply: &Value, now: Instant) {
        nodes.adopt(parse(reply).unwrap(), now);
    }

    #[test]
    fn keys_belong_to_their_master() {
        let now = Instant::now();
        let mut nodes = Nodes::single(now);
        assert!(nodes.of(b"anything") == 0 && nodes.masters().is_empty());
        adopt(&mut nodes, &Value::Array(Vec::new()), now);
        assert!(!nodes.is_charted(now, Duration::MAX), "a cluster that nobody owns a slot of");
        // "foo" is in slot 12182, "bar" in 5061, "hello" in 866 (redis-cli cluster keyslot).
        adopt(&mut nodes, &Value::Array(vec![range(10923, 16383, 3), range(0, 999, 1), range(1000, 10922, 2)]), now);
        let of = ["foo", "bar", "hello", "x{foo}y"].map(|key| nodes.of(key.as_bytes()));
        assert!(of[0] != of[1] && of[1] != of[2] && of[0] != of[2] && of[0] == of[3], "{of:?}");
        assert_eq!(nodes.breakers.len(), 3);
        assert_eq!(nodes.masters().iter().map(|key| nodes.of(key.as_bytes())).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!([0, 999, 1000, 16383].map(|slot| nodes.of_slot(slot)), [0, 0, 1, 2]);
    }

    #[test]
    fn a_new_map_starts_anew_and_the_same_one_changes_nothing() {
        let now = Instant::now();
        let mut nodes = Nodes::single(now);
        let map = Value::Array(vec![range(0, 8000, 1), range(8001, 16383, 2)]);
        adopt(&mut nodes, &map, now);
        nodes.breaker(1).unwrap().trip();
        nodes.breaker(0).unwrap().trip();
        assert_eq!(nodes.well(), None);
        assert!(nodes.breaker(0).unwrap().close(now));
        assert_eq!(nodes.well(), Some(8000));
        adopt(&mut nodes, &map, now);
        assert!(matches!(&*nodes.open(), [(1, key)] if nodes.of(key.as_bytes()) == 1));
        assert_eq!(parse(&Value::Okay), None);
        adopt(&mut nodes, &Value::Array(vec![range(8001, 16383, 2), range(0, 8000, 1)]), now);
        assert_eq!(nodes.open_count(), 1, "another server's order");
        let age = Duration::from_secs(10);
        assert!(nodes.is_charted(now + age / 2, age) && !nodes.is_charted(now + age, age));
        adopt(&mut nodes, &Value::Array(vec![range(0, 16383, 1)]), now + age);
        assert!(nodes.is_charted(now + age, age));
        assert_eq!((nodes.open_count(), nodes.breakers.len()), (0, 1));
    }

    #[test]
    fn masters_without_an_address_are_told_apart() {
        let nowhere = |last, id: &str| {
            let master = vec![Value::Nil, Value::Int(6379), Value::BulkString(id.into())];
            Value::Array(vec![Value::Int(0), Value::Int(last), Value::Array(master)])
        };
        let map = Value::Array(vec![nowhere(100, "a"), nowhere(200, "b"), nowhere(16383, "a")]);
        let mut nodes = Nodes::single(Instant::now());
        adopt(&mut nodes, &map, Instant::now());
        assert_eq!(nodes.masters().iter().map(|key| nodes.of(key.as_bytes())).collect::<Vec<_>>(), [0, 1]);
        assert_eq!([0, 150, 201].map(|slot| nodes.of_slot(slot)), [0, 1, 0]);
    }

    proptest! {
        #[test]
        fn slots_are_the_clients(key in prop::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), any::<u8>()], 0..24)) {
            let theirs = ::redis::cluster_routing::Slot::for_key(&key);
            prop_assert_eq!(::redis::cluster_routing::Slot::new(slot(&key)), Some(theirs));
        }
    }
}
