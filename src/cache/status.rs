//! `Cache-Status` (RFC 9211): what this cache did with a request.

use std::sync::LazyLock;

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// The field itself.
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went on to the inner service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    /// The cache was not asked.
    Bypass,
    /// The method is none that it answers.
    Method,
    /// Nothing is stored for the URL.
    UriMiss,
    /// Only responses to other request fields are stored.
    VaryMiss,
    /// What is stored has expired, or may be used only after validation.
    Stale,
    /// What is stored may not be given to this request: it has credentials, or asks for something fresher.
    Request,
}

impl Forward {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// What became of a forwarded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Plain,
    /// The response is being stored.
    Stored,
    /// It went alone, because it has credentials.
    Private,
    /// Both.
    StoredPrivate,
    /// The response of another request's forward was used.
    Collapsed,
    /// What is stored was served instead of an error.
    Rescued,
}

const HIT: &str = "tower-scale; hit; ttl=";
/// So many hits' members are made once: those of lifetimes up to an hour, and a little more.
const READY: u64 = 4096;

/// In 270 KB that are never given back, so that a copy takes no memory and counts no references: those would be counted
/// by every thread in one place.
static HITS: LazyLock<Box<[HeaderValue]>> = LazyLock::new(|| {
    let texts: Vec<String> = (0..READY).map(|ttl| format!("{HIT}{ttl}")).collect();
    let mut rest: &'static str = Box::leak(texts.concat().into_boxed_str());
    let mut next = |length| {
        let (text, behind) = rest.split_at_checked(length).unwrap_or(("", ""));
        rest = behind;
        HeaderValue::from_static(text)
    };
    texts.iter().map(|text| next(text.len())).collect()
});

/// Makes what hits need: half a millisecond that no request should wait for.
pub(super) fn prepare() {
    LazyLock::force(&HITS);
}

/// A hit, with the seconds of freshness left.
pub(super) fn hit(ttl: u64) -> HeaderValue {
    let ready = usize::try_from(ttl).ok().and_then(|ttl| HITS.get(ttl));
    ready.cloned().unwrap_or_else(|| numbered(HIT, ttl))
}

/// A hit that expired so many seconds ago.
pub(super) fn stale_hit(stale_for: u64) -> HeaderValue {
    numbered("tower-scale; hit; ttl=-", stale_for)
}

/// A forward; with the status that came back, where it is not the one that goes out.
pub(super) fn forwarded(headers: &mut HeaderMap, forward: Forward, answered: Option<StatusCode>, mark: Mark) {
    let answered = answered.map_or(String::new(), |status| format!("; fwd-status={}", status.as_u16()));
    let mark = match mark {
        Mark::Plain => "",
        Mark::Stored => "; stored",
        Mark::Private => "; detail=credentials",
        Mark::StoredPrivate => "; stored; detail=credentials",
        Mark::Collapsed => "; collapsed",
        Mark::Rescued => "; detail=stale-if-error",
    };
    if let Ok(member) = HeaderValue::from_str(&format!("tower-scale; fwd={}{answered}{mark}", forward.as_str())) {
        append(headers, member);
    }
}

/// Nothing stored will do, and the request forbids to forward it: neither a hit nor a forward.
pub(super) fn not_stored(headers: &mut HeaderMap) {
    append(headers, HeaderValue::from_static("tower-scale; detail=only-if-cached"));
}

/// The numbers below 1000, one after the other: most ages are among them, and take no memory of their own.
const SMALL: &str = {
    #[allow(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "evaluated by the compiler"
    )]
    const DIGITS: [u8; 2890] = {
        let (mut digits, mut at, mut number) = ([0; 2890], 0, 0_u32);
        while number < 1000 {
            let mut place = if number < 10 {
                1
            } else if number < 100 {
                10
            } else {
                100
            };
            while place > 0 {
                digits[at] = b'0' + (number / place % 10) as u8;
                (at, place) = (at + 1, place / 10);
            }
            number += 1;
        }
        digits
    };
    match str::from_utf8(&DIGITS) {
        Ok(digits) => digits,
        Err(_) => "",
    }
};

/// A number as a value.
pub(super) fn number(number: u64) -> HeaderValue {
    let (start, length) = match usize::try_from(number).unwrap_or(usize::MAX) {
        number @ 0..10 => (number, 1),
        number @ 10..100 => (2 * number - 10, 2),
        number @ 100..1000 => (3 * number - 110, 3),
        _ => return HeaderValue::from(number),
    };
    SMALL.get(start..start + length).map_or_else(|| HeaderValue::from(number), HeaderValue::from_static)
}

/// The longest of the texts before a number, and the longest number.
const MAX_NUMBERED: usize = 23 + 20;

/// A short text and a number as a value. Without `fmt`, which takes longer than the rest of a hit's fields together.
#[inline]
fn numbered(text: &str, number: u64) -> HeaderValue {
    let mut buffer = [0; MAX_NUMBERED];
    let (mut length, mut left) = (text.len(), number);
    let Some((start, rest)) = buffer.split_at_mut_checked(length) else { return HeaderValue::from_static("") };
    start.copy_from_slice(text.as_bytes());
    let digits = 1 + usize::try_from(number.checked_ilog10().unwrap_or(0)).unwrap_or(0);
    length += digits;
    for place in rest.iter_mut().take(digits).rev() {
        *place = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
    }
    HeaderValue::from_bytes(buffer.get(..length).unwrap_or_default()).unwrap_or(HeaderValue::from_static(""))
}

/// Our member comes last: caches nearer to the origin have added theirs before. What is stored has a blank line in its
/// place, and a blank line says nothing.
pub(super) fn append(headers: &mut HeaderMap, member: HeaderValue) {
    match headers.try_entry(CACHE_STATUS) {
        // A map of 24576 names takes no more.
        Err(_) => {}
        Ok(Entry::Vacant(place)) => drop(place.try_insert(member)),
        Ok(Entry::Occupied(mut lines)) => match lines.iter_mut().next_back().filter(|last| last.is_empty()) {
            Some(place) => *place = member,
            None => lines.append(member),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_anywhere() {
        for n in (0..2_000).chain(4_000..4_200).chain([9_999, 10_000, 1 << 31, u64::MAX - 1, u64::MAX]) {
            assert_eq!(number(n), n.to_string());
            assert_eq!(hit(n), format!("tower-scale; hit; ttl={n}"));
            assert_eq!(numbered("tower-scale; hit; ttl=-", n), format!("tower-scale; hit; ttl=-{n}"));
        }
    }

    #[test]
    fn our_member_is_the_last_and_takes_the_blank_place() {
        let lines = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CACHE_STATUS, HeaderValue::from_static(line));
            }
            append(&mut headers, hit(7));
            headers.get_all(CACHE_STATUS).iter().map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let ours = "tower-scale; hit; ttl=7";
        assert_eq!(lines(&[]), [ours]);
        assert_eq!(lines(&[""]), [ours]);
        assert_eq!(lines(&["a; hit"]), ["a; hit", ours]);
        assert_eq!(lines(&["", "a; hit", ""]), ["", "a; hit", ours]);
    }
}
