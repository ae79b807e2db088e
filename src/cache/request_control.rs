//! `Cache-Control` and `Pragma` of a request.

use http::HeaderMap;
use http::header::{CACHE_CONTROL, PRAGMA};

use super::directives::delta_seconds;
use super::tokens::{Directive, Directives};

/// What a request asks of caches (RFC 9111 §5.2.1). It is advice: what breaks the grammar is not heard, and of two
/// values the stricter counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RequestControl {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) only_if_cached: bool,
    pub(super) max_age: Option<u64>,
    pub(super) min_fresh: Option<u64>,
    /// `u64::MAX`: any.
    pub(super) max_stale: Option<u64>,
}

impl RequestControl {
    /// `Pragma: no-cache` counts only without `Cache-Control` (RFC 9111 §5.4).
    pub(super) fn of(request: &HeaderMap) -> Self {
        let mut control = Self::default();
        if request.contains_key(CACHE_CONTROL) {
            for line in request.get_all(CACHE_CONTROL) {
                Directives(line.as_bytes()).flatten().for_each(|directive| control.apply(&directive));
            }
        } else {
            let pragma = request.get_all(PRAGMA).iter();
            let mut parts = pragma.flat_map(|line| Directives(line.as_bytes()).flatten());
            control.no_cache = parts.any(|part| part.value.is_none() && part.name.eq_ignore_ascii_case(b"no-cache"));
        }
        control
    }

    fn apply(&mut self, Directive { name, value }: &Directive<'_>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let seconds = value.and_then(delta_seconds);
        match (value, seconds) {
            (None, _) if is("no-store") => self.no_store = true,
            (None, _) if is("no-cache") => self.no_cache = true,
            (None, _) if is("only-if-cached") => self.only_if_cached = true,
            (None, _) if is("max-stale") => lower(&mut self.max_stale, u64::MAX),
            (_, Some(seconds)) if is("max-stale") => lower(&mut self.max_stale, seconds),
            (_, Some(seconds)) if is("max-age") => lower(&mut self.max_age, seconds),
            (_, Some(seconds)) if is("min-fresh") => self.min_fresh = self.min_fresh.max(Some(seconds)),
            _ => {}
        }
    }
}

fn lower(limit: &mut Option<u64>, to: u64) {
    *limit = Some(limit.map_or(to, |limit| limit.min(to)));
}

#[cfg(test)]
mod tests {
    use super::super::directives::MAX_DELTA_SECONDS;
    use super::*;

    fn request(lines: &[(&'static str, &str)]) -> RequestControl {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        RequestControl::of(&headers)
    }

    #[test]
    fn a_requests_directives() {
        let none = RequestControl::default();
        let age = |max_age| RequestControl { max_age: Some(max_age), ..none.clone() };
        let stale = |max_stale| RequestControl { max_stale: Some(max_stale), ..none.clone() };
        let no_cache = RequestControl { no_cache: true, ..none.clone() };
        for (value, expected) in [
            ("nothing-to-see-here", none.clone()),
            ("No-Store", RequestControl { no_store: true, ..none.clone() }),
            ("no-cache, a b", no_cache.clone()),
            ("a b, no-cache", no_cache.clone()),
            ("a=\"b, no-cache", none.clone()),
            ("ONLY-if-cached", RequestControl { only_if_cached: true, ..none.clone() }),
            ("max-age=5", age(5)),
            ("max-age=\"5\"", age(5)),
            ("max-age=5, max-age=3, max-age=x, max-age", age(3)),
            ("max-age=99999999999999999999", age(MAX_DELTA_SECONDS)),
            ("max-age=-1, max-age= 1, min-fresh, max-stale=x", none.clone()),
            ("min-fresh=5, min-fresh=7", RequestControl { min_fresh: Some(7), ..none.clone() }),
            ("max-stale", stale(u64::MAX)),
            ("max-stale, max-stale=9", stale(9)),
            ("max-stale=9, max-stale", stale(9)),
        ] {
            assert_eq!(request(&[("cache-control", value)]), expected, "{value}");
        }
        assert_eq!(request(&[("pragma", "x"), ("pragma", "y, No-Cache")]), no_cache);
        assert_eq!(request(&[("pragma", "no-cache"), ("cache-control", "")]), none);
        assert_eq!(request(&[("pragma", "x=\"no-cache\"")]), none);
    }
}
