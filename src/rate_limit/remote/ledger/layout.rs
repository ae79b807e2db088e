//! What a client's keys in Redis are called, and which quotas are in which.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::io::Write;

use siphasher::sip::SipHasher24;

use super::super::super::partition::Partition;
use super::super::super::policy::{Policy, Rule, Scope};
use crate::redis::Redis;

/// `{prefix}rl:{policy}:{fingerprint}:{partition}`. Where there are tiers, what stands in braces is the widest one, so that
/// the keys of a client are on one node of a cluster: `…:{2001:db8::/32}2001:db8:1:2::/64`.
///
/// No client chooses its node by anything but its address: a key of the application's is a digest in here.
pub(super) struct Layout {
    root: Vec<u8>,
    /// The quotas of each client by itself.
    own: Vec<usize>,
    /// By prefix, the widest first.
    tiers: BTreeMap<u8, Vec<usize>>,
}

/// A key, and the quotas whose TATs are in it.
pub(super) struct Record<'a> {
    pub(super) key: Vec<u8>,
    pub(super) rules: &'a [usize],
}

impl Layout {
    pub(super) fn new(redis: &Redis, policy: &Policy) -> Self {
        let name = format!("{}:{:08x}:", policy.name, fingerprint(&policy.rules));
        let (mut own, mut tiers) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
        for (index, rule) in policy.rules.iter().enumerate() {
            match rule.scope {
                Scope::Key => own.push(index),
                Scope::Ipv6(prefix) => tiers.entry(prefix).or_default().push(index),
            }
        }
        Self { root: redis.key("rl", name.as_bytes()), own, tiers }
    }

    /// Of something that is no client's.
    pub(super) fn common(&self, name: &str) -> Vec<u8> {
        [&*self.root, name.as_bytes()].concat()
    }

    /// Of the client itself, then of its tiers.
    pub(super) fn records(&self, client: Partition) -> Vec<Record<'_>> {
        let widest = self.tiers.keys().next().and_then(|prefix| client.wider(*prefix));
        let mut records = Vec::with_capacity(1 + self.tiers.len());
        records.push(Record { key: self.key(widest, client), rules: &self.own });
        for (prefix, rules) in &self.tiers {
            if let Some(wider) = client.wider(*prefix) {
                records.push(Record { key: self.key(widest, wider), rules });
            }
        }
        records
    }

    fn key(&self, widest: Option<Partition>, partition: Partition) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.root.len() + 64);
        key.extend_from_slice(&self.root);
        // Writing to a vector does not fail.
        let _ = match widest {
            None => write!(key, "{partition}"),
            Some(widest) if widest == partition => write!(key, "{{{widest}}}"),
            Some(widest) => write!(key, "{{{widest}}}{partition}"),
        };
        key
    }
}

/// The same on every machine and in every version, as long as values mean the same.
fn fingerprint(rules: &[Rule]) -> u32 {
    let mut hasher = SipHasher24::new_with_key(b"tower-scale rl 1");
    for Rule { quota, scope } in rules {
        let scope = match scope {
            Scope::Key => 0,
            Scope::Ipv6(prefix) => *prefix,
        };
        hasher.write(&quota.count().to_be_bytes());
        hasher.write(&quota.period_nanos().to_be_bytes());
        hasher.write(&quota.burst_size().to_be_bytes());
        hasher.write(&[scope]);
    }
    (hasher.finish() >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::super::super::super::quota::Quota;
    use super::*;

    fn layout(policy: &Policy) -> Layout {
        Layout::new(&Redis::connect("redis://h").unwrap(), policy)
    }

    fn client(address: &str) -> Partition {
        Partition::of(address.parse().unwrap(), 32, 64)
    }

    fn keys(layout: &Layout, client: Partition) -> Vec<(String, Vec<usize>)> {
        let text = |record: Record<'_>| (String::from_utf8(record.key).unwrap(), record.rules.to_vec());
        layout.records(client).into_iter().map(text).collect()
    }

    /// Written down, so that no version starts all counts anew by accident.
    #[test]
    fn one_key_holds_all_quotas_of_a_client() {
        let layout = layout(&Policy::new([Quota::per_second(10), Quota::per_day(1000)]).named("api"));
        for (client, name) in [
            (client("203.0.113.9"), "203.0.113.9"),
            (client("2001:db8:1:2::3"), "2001:db8:1:2::/64"),
            (Partition::digest(10), "0000000000000000000000000000000a"),
            (Partition::EVERYBODY, "*"),
        ] {
            assert_eq!(keys(&layout, client), [(format!("ts:rl:api:30efaea3:{name}"), vec![0, 1])]);
        }
    }

    #[test]
    fn a_client_and_its_tiers_are_in_one_slot() {
        let policy = Policy::new(Quota::per_second(10)).ipv6_tier(48, Quota::per_minute(160));
        let policy = policy.ipv6_tier(32, Quota::per_hour(9)).ipv6_tier(48, Quota::per_day(1600));
        let layout = layout(&policy);
        let root = String::from_utf8(layout.root.clone()).unwrap();
        assert_eq!(
            keys(&layout, client("2001:db8:1:2::3")),
            [
                (format!("{root}{{2001:db8::/32}}2001:db8:1:2::/64"), vec![0]),
                (format!("{root}{{2001:db8::/32}}"), vec![2]),
                (format!("{root}{{2001:db8::/32}}2001:db8:1::/48"), vec![1, 3]),
            ]
        );
        assert_eq!(keys(&layout, client("192.0.2.1")), [(format!("{root}192.0.2.1"), vec![0])]);
    }

    #[test]
    fn other_quotas_have_other_keys() {
        let policies = [
            Policy::new(Quota::per_second(10)),
            Policy::new(Quota::per_second(10)).named("other"),
            Policy::new(Quota::per_second(11).burst(10)),
            Policy::new(Quota::per_minute(10)),
            Policy::new(Quota::per_second(10).burst(11)),
            Policy::new([Quota::per_second(10), Quota::per_minute(10)]),
            Policy::new(Quota::per_second(10)).ipv6_tier(48, Quota::per_minute(10)),
            Policy::new(Quota::per_second(10)).ipv6_tier(40, Quota::per_minute(10)),
        ];
        let roots: std::collections::HashSet<_> = policies.iter().map(|policy| layout(policy).root).collect();
        assert_eq!(roots.len(), policies.len());
        let named = Policy::new(Quota::per_second(10).named("burst"));
        assert!(roots.contains(&layout(&named).root), "a quota may be renamed");
    }
}
