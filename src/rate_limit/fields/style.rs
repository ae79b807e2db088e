//! The styles.

/// In which fields responses tell clients of their quotas.
///
/// Of a quota of 100 per minute, which admits 7 requests more, and one more than that in 12 seconds:
///
/// | style | fields |
/// |---|---|
/// | `Draft` | `RateLimit-Policy: "default";q=100;w=60`<br>`RateLimit: "default";r=7;t=12` |
/// | `Draft7` | `RateLimit-Policy: 100;w=60`<br>`RateLimit: limit=100, remaining=7, reset=12` |
/// | `Draft6` | `RateLimit-Policy: 100;w=60`<br>`RateLimit-Limit: 100`<br>`RateLimit-Remaining: 7`<br>`RateLimit-Reset: 12` |
/// | `Legacy` | `X-RateLimit-Limit: 100`<br>`X-RateLimit-Remaining: 7`<br>`X-RateLimit-Reset: 1793404812` |
///
/// The count is that of the quota (for a period of part of a second, scaled to whole ones), not its burst. Numbers of
/// seconds are rounded up and not 0. Of several quotas, `Draft` states all that concern the client, in their order; the
/// others list all in `RateLimit-Policy`, and else state the one with the least remaining, then the longest wait, where
/// `remaining` is at most `limit`. On a refusal no quota states a later time than `Retry-After` does.
///
/// Responses get these fields whatever their status, beside those that the inner service states of limits of its own.
/// Answers from a cache outside of the limiter would have stale ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fields {
    /// The current form, structured fields ([RFC 9651](https://www.rfc-editor.org/rfc/rfc9651)): that of
    /// [draft-ietf-httpapi-ratelimit-headers] 11, the same since draft 8. It will follow the draft.
    ///
    /// [draft-ietf-httpapi-ratelimit-headers]: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
    #[default]
    Draft,
    /// That of [draft 7](https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-07).
    Draft7,
    /// That of [draft 6](https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-06).
    Draft6,
    /// The fields that GitHub and others use without a specification. `X-RateLimit-Reset` is a Unix time in seconds, by
    /// this machine's clock, so a client whose own clock is wrong waits too long or not long enough.
    Legacy,
    /// None. Refusals still have `Retry-After`.
    None,
}
