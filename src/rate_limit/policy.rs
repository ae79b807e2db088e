//! What one class of clients may do.

use super::governor::Governed;
use super::key::Key;
use super::quota::{ConfigError, Quota, is_name};

/// A policy has no more quotas than this, tiers included, so that a decision has a fixed size.
pub(crate) const MAX_QUOTAS: usize = 6;

/// 2²⁰ slots take about 9 MiB, once all of them have been used.
const DEFAULT_SLOTS: usize = 1 << 20;

/// No table is larger: 37 GiB.
const MAX_SLOTS: usize = u32::MAX as usize;

/// Quotas, and by what [`Key`] clients are told apart.
///
/// A quota, or an array of quotas, is a policy for every client address. All quotas of a policy must allow a request;
/// one that any of them refuses is charged to none.
///
/// ```
/// use tower_scale::rate_limit::{Policy, Quota};
///
/// let burst_and_day = Policy::new([Quota::per_second(10).named("burst"), Quota::per_day(10_000).named("day")]);
/// let home_and_site = Policy::new(Quota::per_minute(100)).ipv6_tier(48, Quota::per_minute(1600).named("site"));
/// # let _ = (burst_and_day, home_and_site);
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) name: &'static str,
    pub(crate) rules: Vec<Rule>,
    pub(crate) key: Key,
    pub(crate) slots: usize,
    pub(crate) on_full: OnFull,
    /// Who decides instead, if anybody.
    pub(crate) governed: Option<Governed>,
}

/// A quota, and whom it counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) quota: Quota,
    pub(crate) scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Each key by itself.
    Key,
    /// All IPv6 clients with the same prefix of this length. Others are not concerned.
    Ipv6(u8),
}

/// What becomes of a client that is new to a full bucket of the table; see the [module page](super#sizing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFull {
    /// It inherits the smallest debt of the bucket. Nobody ever gets more than its quota, and a flood may make some new
    /// clients wait.
    #[default]
    Inherit,
    /// It begins with no debt, and the smallest debt of the bucket is forgotten. No new client ever waits, and a flood
    /// may wash out debts.
    Admit,
}

impl Policy {
    /// These quotas, for each client address (see [`Key::ip`]).
    ///
    /// # Panics
    /// Two quotas have the same name.
    #[must_use]
    #[track_caller]
    pub fn new(quotas: impl Into<Self>) -> Self {
        quotas.into()
    }

    /// What tells clients apart.
    ///
    /// # Panics
    /// A tier of [`ipv6_tier`](Self::ipv6_tier) is not wider than the key's IPv6 networks, or `key` is [`Key::global`],
    /// which has none; or governor decides.
    #[must_use]
    #[track_caller]
    pub fn key(mut self, key: Key) -> Self {
        assert!(self.governed.is_none(), "a policy that governor decides has the keys that governor has");
        self.key = key;
        self.assert_tiers();
        self
    }

    /// The policy's name: for [`RateLimitLayer::handle_of`](super::RateLimitLayer::handle_of), in Redis's keys, and in
    /// the `RateLimit` fields if it has one quota without a name. `default` by default.
    ///
    /// # Panics
    /// As [`Quota::named`].
    #[must_use]
    #[track_caller]
    pub fn named(mut self, name: &'static str) -> Self {
        assert!(is_name(name), "a name is 1 to 64 letters, digits, and -_.");
        self.name = name;
        self
    }

    /// Adds a quota that all IPv6 clients with the same prefix of `prefix` bits share, beside those of each client: who
    /// was given a /48 has 65 536 networks of the usual /64. It concerns no IPv4 client.
    ///
    /// # Panics
    /// The key is [`Key::global`]; `prefix` is 0 or not shorter than the key's ([`Key::ipv6_prefix`], 64 by default); a seventh quota; a quota of the
    /// same name; governor decides.
    #[must_use]
    #[track_caller]
    pub fn ipv6_tier(mut self, prefix: u8, quota: Quota) -> Self {
        assert!(self.rules.len() < MAX_QUOTAS, "a policy has at most 6 quotas");
        assert!(self.governed.is_none(), "a policy that governor decides has the one quota that governor has");
        self.rules.push(Rule { quota, scope: Scope::Ipv6(prefix) });
        self.assert_tiers();
        self.checked().unwrap_or_else(|error| refuse(&error))
    }

    /// How many clients can be in debt at once, in about 9 bytes each per quota: 2²⁰ by default. Rounded up to whole
    /// pages of memory. For the right size see the [module page](super#sizing).
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots.min(MAX_SLOTS);
        self
    }

    /// What becomes of a new client where the table is full.
    #[must_use]
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.on_full = on_full;
        self
    }

    fn of(quotas: &[Quota]) -> Result<Self, ConfigError> {
        if quotas.is_empty() || quotas.len() > MAX_QUOTAS {
            return Err(ConfigError::Quotas(quotas.len()));
        }
        let rules = quotas.iter().map(|quota| Rule { quota: *quota, scope: Scope::Key }).collect();
        let key = Key::ip();
        Self { name: "default", rules, key, slots: DEFAULT_SLOTS, on_full: OnFull::default(), governed: None }.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let mut names = self.names();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair.first() == pair.last()) {
            Some(pair) => Err(ConfigError::SameName(pair.concat())),
            None => Ok(self),
        }
    }

    #[track_caller]
    fn assert_tiers(&self) {
        let fits = |rule: &Rule| match rule.scope {
            Scope::Key => true,
            Scope::Ipv6(prefix) => prefix > 0 && prefix < self.key.ipv6_prefix_length() && self.key.may_be_address(),
        };
        assert!(
            self.rules.iter().all(fits),
            "a tier needs a key with addresses, and an IPv6 prefix that is shorter than the key's and not 0"
        );
    }

    /// The quotas' names, in their order.
    pub(crate) fn names(&self) -> Vec<String> {
        let several = self.rules.len() > 1;
        let name = |rule: &Rule| match rule.quota.name() {
            Some(name) => name.to_owned(),
            None if several => rule.quota.period_word(),
            None => self.name.to_owned(),
        };
        self.rules.iter().map(name).collect()
    }
}

#[track_caller]
#[allow(clippy::panic, reason = "a mistake in the application's source, when it starts")]
fn refuse(error: &ConfigError) -> Policy {
    panic!("{error}")
}

impl From<Quota> for Policy {
    fn from(quota: Quota) -> Self {
        Self::from([quota])
    }
}

/// An array of none, or of more than six, does not compile. Two quotas of one name panic.
impl<const N: usize> From<[Quota; N]> for Policy {
    #[track_caller]
    fn from(quotas: [Quota; N]) -> Self {
        const { assert!(N > 0 && N <= MAX_QUOTAS, "a policy has 1 to 6 quotas") };
        Self::of(&quotas).unwrap_or_else(|error| refuse(&error))
    }
}

/// For quotas that are read at run time.
impl TryFrom<&[Quota]> for Policy {
    type Error = ConfigError;

    fn try_from(quotas: &[Quota]) -> Result<Self, ConfigError> {
        Self::of(quotas)
    }
}
