//! What a stored response may be used for (RFC 9111 §4): plain functions, with the time as an argument.

use std::time::SystemTime;

use http::HeaderName;

use super::directives::{CacheControl, RequestControl};
use super::entry::Head;
use super::purge::Purged;

/// What to do with a request, given what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Answer with it.
    Fresh,
    /// Answer with it, and renew it in the background (RFC 5861 §3).
    Renew,
    /// Ask the inner service first, whether it still holds.
    Validate,
    /// It is not for requests with credentials (RFC 9111 §3.5).
    Withhold,
    /// It is no longer there.
    Gone,
}

/// What a request brings to the decision.
#[derive(Clone, Copy)]
pub(super) struct Demand<'a> {
    pub(super) credentials: bool,
    /// Where the policy obeys it.
    pub(super) control: Option<&'a RequestControl>,
    /// The policy's targeted fields.
    pub(super) targeted: &'a [HeaderName],
    pub(super) now: SystemTime,
}

/// Decides about one stored response.
pub(super) fn judge(head: &Head, purged: Purged, demand: Demand<'_>) -> Use {
    let now = demand.now;
    if purged == Purged::Hard || now >= head.keep_until || head.is_from_the_future(now) {
        return Use::Gone;
    }
    if demand.credentials && !head.shared {
        return Use::Withhold;
    }
    let is_fresh = purged == Purged::No && head.is_fresh(now);
    match demand.control {
        Some(control) if !suffices(head, control, demand.targeted, is_fresh, now) => Use::Validate,
        _ if is_fresh => Use::Fresh,
        Some(control) if purged == Purged::No && allows_stale(head, control, now) => Use::Fresh,
        _ if now < head.revalidate_until && head.revalidate_until > head.fresh_until => Use::Renew,
        _ => Use::Validate,
    }
}

/// Whether the response may stand in for an error (RFC 5861 §4).
pub(super) fn is_better_than_an_error(head: &Head, purged: Purged, now: SystemTime) -> bool {
    let fresh_again = purged == Purged::No && head.is_fresh(now);
    let in_window = now < head.error_until && head.error_until > head.fresh_until;
    purged != Purged::Hard && !head.is_from_the_future(now) && (fresh_again || in_window)
}

/// Whether the response is young enough for the request (RFC 9111 §5.2.1). A reload does not doubt what is immutable
/// (RFC 8246).
fn suffices(head: &Head, control: &RequestControl, targeted: &[HeaderName], is_fresh: bool, now: SystemTime) -> bool {
    let too_old = control.max_age.is_some_and(|limit| head.age(now).as_secs() > limit);
    let is_immutable =
        || CacheControl::targeted(&head.headers, targeted).unwrap_or_else(|| CacheControl::of(&head.headers)).immutable;
    if (control.no_cache || too_old) && !(is_fresh && is_immutable()) {
        return false;
    }
    control.min_fresh.is_none_or(|least| is_fresh && head.ttl(now) >= least)
}

fn allows_stale(head: &Head, control: &RequestControl, now: SystemTime) -> bool {
    let stale_for = now.duration_since(head.fresh_until).unwrap_or_default();
    !head.strict && control.max_stale.is_some_and(|limit| stale_for.as_secs() <= limit)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use http::HeaderMap;
    use http::header::CACHE_CONTROL;

    use super::super::entry::tests::head;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    /// Born at 0, fresh until 10, renewed until 20, instead of errors until 30, kept until 40.
    fn stored() -> Head {
        let times = head(at(0), at(10));
        Head { revalidate_until: at(20), error_until: at(30), keep_until: at(40), shared: true, ..times }
    }

    fn decide(head: &Head, purged: Purged, control: Option<&RequestControl>, seconds: u64) -> Use {
        judge(head, purged, Demand { credentials: true, control, targeted: &[], now: at(seconds) })
    }

    #[test]
    fn time_decides() {
        for (seconds, expected, on_error) in [
            (0, Use::Fresh, true),
            (9, Use::Fresh, true),
            (10, Use::Renew, true),
            (19, Use::Renew, true),
            (20, Use::Validate, true),
            (29, Use::Validate, true),
            (30, Use::Validate, false),
            (39, Use::Validate, false),
            (40, Use::Gone, false),
        ] {
            assert_eq!(decide(&stored(), Purged::No, None, seconds), expected, "{seconds}");
            assert_eq!(is_better_than_an_error(&stored(), Purged::No, at(seconds)), on_error, "{seconds}");
        }
    }

    #[test]
    fn purges_come_before_time() {
        for seconds in [0, 10, 20] {
            assert_eq!(decide(&stored(), Purged::Hard, None, seconds), Use::Gone);
            assert!(!is_better_than_an_error(&stored(), Purged::Hard, at(seconds)));
        }
        assert_eq!(decide(&stored(), Purged::Soft, None, 0), Use::Renew);
        assert_eq!(decide(&stored(), Purged::Soft, None, 20), Use::Validate);
        let never_stale = Head { revalidate_until: at(10), error_until: at(10), ..stored() };
        assert_eq!(decide(&never_stale, Purged::Soft, None, 0), Use::Validate);
        assert!(!is_better_than_an_error(&never_stale, Purged::Soft, at(0)));
    }

    #[test]
    fn credentials_need_permission_even_for_what_is_stale() {
        let own = Head { shared: false, ..stored() };
        for seconds in [0, 10, 20] {
            assert_eq!(decide(&own, Purged::No, None, seconds), Use::Withhold);
            let demand = Demand { credentials: false, control: None, targeted: &[], now: at(seconds) };
            assert_ne!(judge(&own, Purged::No, demand), Use::Withhold);
        }
    }

    #[test]
    fn request_directives() {
        let control = |change: fn(&mut RequestControl)| {
            let mut control = RequestControl::default();
            change(&mut control);
            control
        };
        let no_windows = Head { revalidate_until: at(10), error_until: at(10), ..stored() };
        for (control, head, seconds, expected) in [
            (control(|c| c.no_cache = true), stored(), 0, Use::Validate),
            (control(|c| c.max_age = Some(5)), stored(), 5, Use::Fresh),
            (control(|c| c.max_age = Some(5)), stored(), 6, Use::Validate),
            (control(|c| c.min_fresh = Some(5)), stored(), 5, Use::Fresh),
            (control(|c| c.min_fresh = Some(5)), stored(), 6, Use::Validate),
            (control(|c| c.max_stale = Some(5)), no_windows.clone(), 15, Use::Fresh),
            (control(|c| c.max_stale = Some(5)), no_windows.clone(), 16, Use::Validate),
            (control(|c| c.max_stale = Some(5)), Head { strict: true, ..no_windows }, 15, Use::Validate),
        ] {
            assert_eq!(decide(&head, Purged::No, Some(&control), seconds), expected, "{control:?} at {seconds}");
        }
        let fields = HeaderMap::from_iter([(CACHE_CONTROL, "max-age=10, immutable".parse().unwrap())]);
        let immutable = Head { headers: fields.into(), ..stored() };
        let reload = control(|c| c.no_cache = true);
        assert_eq!(decide(&immutable, Purged::No, Some(&reload), 5), Use::Fresh);
        assert_eq!(decide(&immutable, Purged::No, Some(&reload), 20), Use::Validate);
    }

    #[test]
    fn a_clock_far_behind_uses_nothing() {
        let early = Demand { credentials: false, control: None, targeted: &[], now: at(0) - Duration::from_secs(61) };
        assert_eq!(judge(&stored(), Purged::No, early), Use::Gone);
    }
}
