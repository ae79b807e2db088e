//! `RateLimit-Policy` and `RateLimit`, as structured fields (RFC 9651), after
//! draft-ietf-httpapi-ratelimit-headers-10.

use std::io::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::limiter::Verdict;
use super::quota::Quota;

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The highest integer of a structured field (RFC 9651 section 3.3.1).
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// `"default";q=100;w=60`: the same for every response.
pub(crate) fn policy(quota: &Quota) -> HeaderValue {
    let (count, seconds) = quota.in_whole_seconds();
    let text = format!(r#""default";q={};w={}"#, count.min(MAX_INTEGER), seconds.min(MAX_INTEGER));
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static(r#""default""#))
}

/// Appends both fields, beside what the inner service may have said of limits of its own.
pub(crate) fn append(headers: &mut HeaderMap, policy: HeaderValue, verdict: &Verdict) {
    headers.append(RATELIMIT_POLICY, policy);
    headers.append(RATELIMIT, standing(verdict.remaining, verdict.wait));
}

/// `"default";r=7;t=12`.
fn standing(remaining: u64, wait: Duration) -> HeaderValue {
    let mut buffer = [0_u8; 64];
    let mut rest = buffer.as_mut_slice();
    let written = write!(rest, r#""default";r={};t={}"#, remaining.min(MAX_INTEGER), seconds_up(wait).min(MAX_INTEGER));
    let unused = rest.len();
    let text = buffer.get(..buffer.len() - unused).unwrap_or_default();
    let value = written.ok().and_then(|()| HeaderValue::from_bytes(text).ok());
    value.unwrap_or_else(|| HeaderValue::from_static(r#""default";r=0"#))
}

fn seconds_up(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(policy(&Quota::per_minute(100).burst(20)), r#""default";q=100;w=60"#);
        for (remaining, millis, value) in [
            (7, 12_000, r#""default";r=7;t=12"#),
            (0, 1, r#""default";r=0;t=1"#),
            (19, 600, r#""default";r=19;t=1"#),
            (u64::MAX, 1001, r#""default";r=999999999999999;t=2"#),
        ] {
            assert_eq!(standing(remaining, Duration::from_millis(millis)), value);
        }
        assert_eq!(standing(u64::MAX, Duration::MAX), r#""default";r=999999999999999;t=999999999999999"#);
    }
}
