//! One breaker per server: a single one, or one per master of a cluster.

use ::redis::Value;
use tokio::time::Instant;

use super::breaker::Breaker;

const SLOTS: u16 = 16384;

/// The slots up to `last`, after those of the range before, belong to `node`.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    last: u16,
    node: usize,
}

#[derive(Debug)]
pub(super) struct Nodes {
    ranges: Vec<Range>,
    breakers: Vec<Breaker>,
}

impl Nodes {
    /// One server, or a cluster whose map is not known yet.
    pub(super) fn single(now: Instant) -> Self {
        Self { ranges: Vec::new(), breakers: vec![Breaker::new(now)] }
    }

    /// The server that `key` lives on.
    pub(super) fn of(&self, key: &[u8]) -> usize {
        if self.ranges.is_empty() {
            return 0;
        }
        let slot = slot(key);
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

    /// The servers whose breakers are open, each with one of its slots.
    pub(super) fn open(&self) -> Vec<(usize, u16)> {
        let open = self.breakers.iter().enumerate().filter(|(_, breaker)| breaker.is_open());
        let slot_of = |node| self.ranges.iter().find(|range| range.node == node).map_or(0, |range| range.last);
        open.map(|(node, _)| (node, slot_of(node))).collect()
    }

    /// Takes over a reply to `CLUSTER SLOTS`. Where the map has changed, every breaker starts anew.
    pub(super) fn adopt(&mut self, reply: &Value, now: Instant) {
        let Some(ranges) = parse(reply) else { return };
        if ranges != self.ranges {
            let count = ranges.iter().map(|range| range.node + 1).max().unwrap_or(1);
            self.breakers = (0..count).map(|_| Breaker::new(now)).collect();
            self.ranges = ranges;
        }
    }
}

/// `CLUSTER SLOTS`: per range its first slot, its last slot, the master's address and identity, the replicas.
fn parse(reply: &Value) -> Option<Vec<Range>> {
    let Value::Array(entries) = reply else { return None };
    let mut masters: Vec<(&Value, &Value)> = Vec::new();
    let mut ranges = Vec::with_capacity(entries.len());
    for entry in entries {
        let Value::Array(entry) = entry else { return None };
        let [_, Value::Int(last), Value::Array(master), ..] = entry.as_slice() else { return None };
        let [host, port, ..] = master.as_slice() else { return None };
        let known = masters.iter().position(|known| *known == (host, port));
        let node = known.unwrap_or_else(|| {
            masters.push((host, port));
            masters.len() - 1
        });
        ranges.push(Range { last: u16::try_from(*last).ok()?, node });
    }
    ranges.sort_by_key(|range| range.last);
    Some(ranges)
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
        let master = vec![Value::BulkString(b"h".to_vec()), Value::Int(port), Value::BulkString(b"id".to_vec())];
        Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(master)])
    }

    #[test]
    fn keys_belong_to_their_master() {
        let now = Instant::now();
        let mut nodes = Nodes::single(now);
        assert_eq!(nodes.of(b"anything"), 0);
        // "foo" is in slot 12182, "bar" in 5061, "hello" in 866 (redis-cli cluster keyslot).
        nodes.adopt(&Value::Array(vec![range(10923, 16383, 3), range(0, 999, 1), range(1000, 10922, 2)]), now);
        let of = ["foo", "bar", "hello", "x{foo}y"].map(|key| nodes.of(key.as_bytes()));
        assert!(of[0] != of[1] && of[1] != of[2] && of[0] != of[2] && of[0] == of[3], "{of:?}");
        assert_eq!(nodes.breakers.len(), 3);
    }

    #[test]
    fn a_new_map_starts_anew_and_the_same_one_changes_nothing() {
        let now = Instant::now();
        let mut nodes = Nodes::single(now);
        let map = Value::Array(vec![range(0, 8000, 1), range(8001, 16383, 2)]);
        nodes.adopt(&map, now);
        nodes.breaker(1).unwrap().trip();
        nodes.adopt(&map, now);
        assert_eq!(nodes.open(), [(1, 16383)]);
        nodes.adopt(&Value::Okay, now);
        assert_eq!(nodes.open_count(), 1);
        nodes.adopt(&Value::Array(vec![range(0, 16383, 1)]), now);
        assert_eq!((nodes.open_count(), nodes.breakers.len()), (0, 1));
    }

    proptest! {
        #[test]
        fn slots_are_the_clients(key in prop::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), any::<u8>()], 0..24)) {
            let theirs = ::redis::cluster_routing::Slot::for_key(&key);
            prop_assert_eq!(::redis::cluster_routing::Slot::new(slot(&key)), Some(theirs));
        }
    }
}
