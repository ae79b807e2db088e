//! The decision, through Redis.

use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;

use super::gcra::{self, Limit};
use super::limiter::Verdict;
use super::partition::Partition;
use super::question::{Question, Unanswered};
use super::quota::Quota;
use crate::redis::{Kind, Redis, Script};

/// An interval of years times a burst of billions would leave the range in which Lua's numbers are exact.
const MAX_CAPACITY: u64 = 1 << 52;

/// One quota, and the Redis that knows what every client owes of it.
pub(crate) struct Remote {
    pub(crate) redis: Redis,
    script: Script,
    limit: Limit,
    /// Names the quota, so that two quotas on one Redis do not share debts.
    quota: String,
}

impl Remote {
    pub(crate) fn new(redis: Redis, quota: &Quota) -> Self {
        let limit = in_micros(quota);
        let quota = format!("{}-{}-{}", quota.count(), quota.period_nanos(), quota.burst_size());
        Self { redis, script: Script::new(include_str!("gcra.lua")), limit, quota }
    }

    /// Charges `client` for one request.
    pub(crate) fn check(self: Arc<Self>, client: Partition) -> Question {
        Box::pin(async move {
            let key = self.redis.key("rl", format!("{}:{client}", self.quota).as_bytes());
            let args = [self.limit.interval, self.limit.capacity, 1].map(|number| number.to_string());
            let args = args.each_ref().map(String::as_bytes);
            match self.redis.eval(&self.script, &[&key], &args).await {
                Ok(answer) => self.read(&answer).ok_or(Unanswered { timed_out: false }),
                Err(error) => Err(Unanswered { timed_out: error.kind() == Kind::Timeout }),
            }
        })
    }

    /// `None`: it is not an answer of our script.
    fn read(&self, answer: &Value) -> Option<Verdict> {
        let Value::Array(items) = answer else { return None };
        let [Value::Int(admitted), Value::Int(debt)] = items.as_slice() else { return None };
        let (remaining, wait) = gcra::standing(self.limit, u64::try_from(*debt).ok()?);
        Some(Verdict { admitted: *admitted == 1, remaining, wait: Duration::from_micros(wait) })
    }
}

/// The quota in Redis's microseconds; the interval is rounded up.
fn in_micros(quota: &Quota) -> Limit {
    let interval = quota.period_nanos().div_ceil(u128::from(quota.count()) * 1000);
    let interval = u64::try_from(interval).unwrap_or(u64::MAX);
    Limit { interval, capacity: interval.saturating_mul(quota.burst_size()).min(MAX_CAPACITY) }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn intervals_are_whole_microseconds_rounded_up() {
        let limit = |count, nanos| {
            in_micros(&Quota::new(NonZeroU32::new(count).unwrap(), Duration::from_nanos(nanos)).unwrap())
        };
        assert_eq!(limit(100, 60_000_000_000), Limit { interval: 600_000, capacity: 60_000_000 });
        assert_eq!(limit(7, 1_000_000_000).interval, 142_858);
        assert_eq!(limit(65_536, 1_000_000_000).interval, 16);
    }
}
