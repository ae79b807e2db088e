//! A stored response's fields, laid out so that giving them out is one copy.

use std::ops::Deref;

use http::header::AGE;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::status::CACHE_STATUS;

/// What has no value yet.
const BLANK: HeaderValue = HeaderValue::from_static("");

/// Fields with places for the two that every answer gets of its own: a blank `Age`, and a blank last line of
/// `Cache-Status`. A copy has no room for more, and would move all of them to make some.
///
/// As small as its fields allow: a handler's map may have had room for many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields(HeaderMap);

impl From<HeaderMap> for Fields {
    /// `Age` is made anew for each answer, and blank lines say nothing: what there is of both goes.
    fn from(headers: HeaderMap) -> Self {
        let mut fields = HeaderMap::try_with_capacity(headers.keys_len() + 2).unwrap_or_default();
        fields.extend(plain(headers));
        let fields = with_places(fields);
        // The copy of a map has its fields in vectors of just their length.
        #[allow(clippy::redundant_clone, reason = "see above")]
        Self(fields.clone())
    }
}

impl Fields {
    /// The same of fields that come one by one, into a map that has room for just them from the start.
    pub(super) fn read(count: usize, mut next: impl FnMut() -> Option<(HeaderName, HeaderValue)>) -> Option<Self> {
        let mut fields = HeaderMap::try_with_capacity(count + 2).ok()?;
        for _ in 0..count {
            let (name, value) = next()?;
            if name != AGE && (name != CACHE_STATUS || !value.is_empty()) {
                fields.try_append(name, value).ok()?;
            }
        }
        Some(Self(with_places(fields)))
    }

    /// For one answer. Without `member`, `Cache-Status` stays blank until [`append`](super::status::append) writes it.
    ///
    /// One pass over a few names is faster than to look up two.
    pub(super) fn answer(&self, age: HeaderValue, member: Option<HeaderValue>) -> HeaderMap {
        let mut headers = self.0.clone();
        let (mut age, mut member) = (Some(age), member);
        for (name, value) in headers.iter_mut().filter(|(_, value)| value.is_empty()) {
            let own = if *name == AGE { &mut age } else { &mut member };
            if (*name == AGE || *name == CACHE_STATUS)
                && let Some(own) = own.take()
            {
                *value = own;
            }
        }
        headers
    }

    /// Without the two places.
    pub(super) fn plain(&self) -> HeaderMap {
        plain(self.0.clone())
    }
}

/// A map of 24576 names takes no more; its answers go without.
fn with_places(mut fields: HeaderMap) -> HeaderMap {
    let _ = fields.try_insert(AGE, BLANK);
    let _ = fields.try_append(CACHE_STATUS, BLANK);
    fields
}

fn plain(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(AGE);
    if headers.contains_key(CACHE_STATUS) {
        let lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().filter(|line| !line.is_empty()).cloned().collect();
        headers.remove(CACHE_STATUS);
        for line in lines {
            headers.append(CACHE_STATUS, line);
        }
    }
    headers
}

impl Deref for Fields {
    type Target = HeaderMap;

    /// With the two places.
    fn deref(&self) -> &HeaderMap {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_and_go() {
        let lines = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::with_capacity(1000);
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            headers
        };
        for headers in [
            lines(&[]),
            lines(&[("etag", "\"x\""), ("link", "a"), ("link", "b")]),
            lines(&[("cache-status", "origin; hit")]),
            lines(&[("cache-status", "origin; hit"), ("cache-status", "edge; hit")]),
        ] {
            for fields in [Fields::from(headers.clone()), read(&headers)] {
                assert_eq!(fields.plain(), headers);
                assert!(fields.capacity() < 10, "no larger than it must be");
                let value = HeaderValue::from_static;
                let answer = fields.answer(value("7"), Some(value("us")));
                assert_eq!((&answer[AGE], answer.len()), (&value("7"), headers.len() + 2));
                assert_eq!(answer.get_all(CACHE_STATUS).iter().next_back(), Some(&value("us")));
                assert_eq!(plain(fields.answer(value("7"), None)), headers);
            }
        }
        let headers = lines(&[("age", "3"), ("cache-status", ""), ("age", ""), ("x", "")]);
        for fields in [Fields::from(headers.clone()), read(&headers)] {
            assert_eq!(fields.plain(), lines(&[("x", "")]));
        }
        assert_eq!(Fields::read(2, || None), None);
    }

    fn read(headers: &HeaderMap) -> Fields {
        let mut fields = headers.iter().map(|(name, value)| (name.clone(), value.clone()));
        Fields::read(headers.len(), || fields.next()).unwrap()
    }
}
