//! Which parts of a stored response a request asks for (RFC 9110 §14).

use std::ops::Range;
use std::time::Duration;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, DATE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};

use super::conditional::{is_same_strong_tag, single};
use super::date;

pub(super) use super::partial::{apply, head_of_part};

/// More parts than this are no download that goes on where it was cut off.
const MAX_PARTS: usize = 16;

/// More pairs of parts that overlap are a broken client or an attack (RFC 9110 §14.2).
const MAX_OVERLAPS: usize = 2;

/// The answer to a `Range`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// No usable `Range`, or one that is ignored: 200.
    Whole,
    One(Range<u64>),
    /// In the order of the request; never more bytes than the whole.
    Many(Vec<Range<u64>>),
    /// 416.
    Unsatisfiable,
}

/// What part of a stored 200 of `length` bytes a GET asks for, its `If-Range` considered. A field that breaks the
/// grammar is ignored. So is a request for several parts where a content coding is stored: within a multipart, no field
/// could tell a client what it covers.
pub(super) fn select(request: &HeaderMap, stored: &HeaderMap, length: u64) -> Selection {
    let specs = single(request, RANGE).and_then(|value| specs(value.as_bytes()));
    let Some(specs) = specs.filter(|_| if_range_holds(request, stored)) else { return Selection::Whole };
    let mut parts: Vec<_> = specs.into_iter().filter_map(|spec| spec.resolve(length)).collect();
    match parts.len() {
        0 => Selection::Unsatisfiable,
        // Only a suffix is satisfiable in nothing, and no `Content-Range` can say so (§14.4).
        _ if length == 0 => Selection::Whole,
        1 => parts.pop().map_or(Selection::Whole, Selection::One),
        _ if is_modest(&parts, length) && !stored.contains_key(CONTENT_ENCODING) => Selection::Many(parts),
        _ => Selection::Whole,
    }
}

/// One member of a `Range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// First and last position.
    Between(u64, u64),
    Suffix(u64),
}

impl Spec {
    fn parse(member: &[u8]) -> Option<Self> {
        let dash = member.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (member.get(..dash)?, member.get(dash + 1..)?);
        match (position(first), position(last)) {
            (None, Some(length)) if first.is_empty() => Some(Self::Suffix(length)),
            (Some(first), None) if last.is_empty() => Some(Self::Between(first, u64::MAX)),
            (Some(first), Some(last)) if first <= last => Some(Self::Between(first, last)),
            _ => None,
        }
    }

    /// `None`: not satisfiable (§14.1.2).
    fn resolve(self, length: u64) -> Option<Range<u64>> {
        match self {
            Self::Between(first, last) => (first < length).then(|| first..last.saturating_add(1).min(length)),
            Self::Suffix(0) => None,
            Self::Suffix(suffix) => Some(length.saturating_sub(suffix)..length),
        }
    }
}

/// `bytes=0-9, 20-, -5` (§14.1.1).
fn specs(value: &[u8]) -> Option<Vec<Spec>> {
    let unit = value.iter().position(|byte| *byte == b'=')?;
    let set = value.get(unit + 1..)?;
    if !value.get(..unit)?.eq_ignore_ascii_case(b"bytes") || set.trim_ascii() != set {
        return None;
    }
    let members = set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty());
    members.map(Spec::parse).collect::<Option<Vec<_>>>().filter(|specs| !specs.is_empty())
}

/// Decimal digits only; what is too large is past every end.
fn position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    })
}

fn is_modest(parts: &[Range<u64>], length: u64) -> bool {
    let total = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.end - part.start));
    if parts.len() > MAX_PARTS || total > length {
        return false;
    }
    let overlap = |left: &Range<u64>, right: &Range<u64>| left.start < right.end && right.start < left.end;
    let later = |at: usize| parts.iter().skip(at + 1);
    let overlaps = parts.iter().enumerate().flat_map(|(at, part)| later(at).filter(move |other| overlap(part, other)));
    overlaps.count() <= MAX_OVERLAPS
}

/// §13.1.5: a strong tag that is the same, or the very date where that is a strong validator (§8.8.2.2: at least a
/// second older than the response).
fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if !request.contains_key(IF_RANGE) {
        return true;
    }
    let Some(asked) = single(request, IF_RANGE) else { return false };
    if single(stored, ETAG).is_some_and(|tag| is_same_strong_tag(asked.as_bytes(), tag.as_bytes())) {
        return true;
    }
    let date = |name| date::parse(single(stored, name)?.as_bytes());
    match (date::parse(asked.as_bytes()), date(LAST_MODIFIED), date(DATE)) {
        (Some(asked), Some(modified), Some(sent)) => asked == modified && sent >= modified + Duration::from_secs(1),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn of(range: &str, length: u64) -> Selection {
        select(&map(&[("range", range)]), &HeaderMap::new(), length)
    }

    #[test]
    fn one_part() {
        for (range, expected) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-9", 0..10),
            ("bytes=0-", 0..10),
            ("bytes=9-", 9..10),
            ("bytes=3-99", 3..10),
            ("bytes=3-99999999999999999999999", 3..10),
            ("bytes=003-0004", 3..5),
            ("bytes=-3", 7..10),
            ("bytes=-10", 0..10),
            ("bytes=-99999999999999999999999", 0..10),
            ("Bytes=1-2", 1..3),
            ("bytes=,1-2 ,\t,", 1..3),
            ("bytes=1-2,10-", 1..3),
            ("bytes=10-,1-2,-0", 1..3),
        ] {
            let range = range.trim_end_matches(['\t', ' ']);
            assert_eq!(of(range, 10), Selection::One(expected), "{range}");
        }
    }

    #[test]
    fn several_parts() {
        for (range, expected) in [
            ("bytes=0-1,3-4", vec![0..2, 3..5]),
            ("bytes=5-6 , 0-1,-1", vec![5..7, 0..2, 9..10]),
            ("bytes=0-1,20-,2-3", vec![0..2, 2..4]),
            ("bytes=0-0,0-0", vec![0..1, 0..1]),
            ("bytes=0-2,1-3,2-4", vec![]),
            ("bytes=0-1,1-2,2-3", vec![0..2, 1..3, 2..4]),
            ("bytes=0-,-1", vec![]),
            ("bytes=0-5,6-9", vec![0..6, 6..10]),
            ("bytes=0-5,5-9", vec![]),
        ] {
            let expected = if expected.is_empty() { Selection::Whole } else { Selection::Many(expected) };
            assert_eq!(of(range, 10), expected, "{range}");
        }
        for (parts, expected) in [(16, true), (17, false)] {
            let list: Vec<_> = (0..parts).map(|at| format!("{}-{}", at * 2, at * 2)).collect();
            let selection = of(&format!("bytes={}", list.join(",")), 1000);
            assert_eq!(matches!(selection, Selection::Many(_)), expected, "{parts}");
        }
        let asked = map(&[("range", "bytes=0-1,3-4")]);
        assert_eq!(select(&asked, &map(&[("content-encoding", "gzip")]), 10), Selection::Whole);
    }

    #[test]
    fn what_breaks_the_grammar_is_ignored() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=--1",
            "bytes=1",
            "bytes=2-1",
            "bytes=1-2-3",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1 - 2",
            "bytes= 1-2",
            "bytes =1-2",
            "bytes=1-2;3-4",
            "bytes=1-2,x",
            "bytes=x,1-2",
            "bytes=1-2,2-1",
            "bytes=0x1-2",
            "bytes:1-2",
            "items=1-2",
            "bytes 1-2/3",
            "bytes=1.0-2",
            "bytes=*",
        ] {
            assert_eq!(of(range, 10), Selection::Whole, "{range}");
        }
        let twice = map(&[("range", "bytes=1-2"), ("range", "bytes=1-2")]);
        assert_eq!(select(&twice, &HeaderMap::new(), 10), Selection::Whole);
        assert_eq!(select(&HeaderMap::new(), &HeaderMap::new(), 10), Selection::Whole);
    }

    #[test]
    fn unsatisfiable() {
        for (range, length) in [
            ("bytes=10-", 10),
            ("bytes=10-20,30-", 10),
            ("bytes=-0", 10),
            ("bytes=99999999999999999999999-", u64::MAX),
            ("bytes=0-", 0),
            ("bytes=-0", 0),
        ] {
            assert_eq!(of(range, length), Selection::Unsatisfiable, "{range} of {length}");
        }
        assert_eq!(of("bytes=-5", 0), Selection::Whole);
        assert_eq!(of("bytes=-5,0-", 0), Selection::Whole);
    }

    #[test]
    fn if_range() {
        const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const NEXT: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
        let dated = |sent| vec![("last-modified", OLD), ("date", sent)];
        for (condition, stored, expected) in [
            ("\"a\"", vec![("etag", "\"a\"")], true),
            ("\"b\"", vec![("etag", "\"a\"")], false),
            ("W/\"a\"", vec![("etag", "W/\"a\"")], false),
            ("W/\"a\"", vec![("etag", "\"a\"")], false),
            ("\"a\"", vec![("etag", "W/\"a\"")], false),
            ("\"a\", \"b\"", vec![("etag", "\"a\"")], false),
            ("*", vec![("etag", "\"a\"")], false),
            ("a", vec![("etag", "a")], false),
            ("", vec![], false),
            ("\"a\"", vec![("etag", "\"a\""), ("etag", "\"a\"")], false),
            (OLD, dated(NEXT), true),
            ("Sunday, 06-Nov-94 08:49:37 GMT", dated(NEXT), true),
            (OLD, dated(OLD), false),
            (OLD, dated("now"), false),
            (OLD, vec![("last-modified", OLD)], false),
            (NEXT, dated(NEXT), false),
            ("Sun, 06 Nov 1994 08:49:36 GMT", dated(NEXT), false),
        ] {
            let request = map(&[("range", "bytes=0-1"), ("if-range", condition)]);
            let selection = select(&request, &map(&stored), 10);
            assert_eq!(selection == Selection::One(0..2), expected, "{condition} {stored:?}");
            assert!(expected || selection == Selection::Whole);
        }
        let twice = map(&[("range", "bytes=0-1"), ("if-range", "\"a\""), ("if-range", "\"a\"")]);
        assert_eq!(select(&twice, &map(&[("etag", "\"a\"")]), 10), Selection::Whole);
    }

    /// The bytes that one member asks for, found one by one.
    fn naive((first, last): (Option<u64>, Option<u64>), length: u64) -> Vec<u64> {
        let asked = |at: &u64| match (first, last) {
            (Some(first), Some(last)) => first <= *at && *at <= last,
            (Some(first), None) => first <= *at,
            (None, Some(suffix)) => *at + suffix >= length,
            (None, None) => false,
        };
        (0..length).filter(asked).collect()
    }

    proptest! {
        #[test]
        fn arithmetic_agrees_with_counting(
            members in proptest::collection::vec(prop_oneof![
                (0u64..40, 0u64..40).prop_map(|(first, more)| (Some(first), Some(first + more))),
                (0u64..40).prop_map(|first| (Some(first), None)),
                (0u64..40).prop_map(|suffix| (None, Some(suffix))),
            ], 1..20),
            length in 1u64..200,
        ) {
            let digits = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
            let write = |(first, last): &(Option<u64>, Option<u64>)| format!("{}-{}", digits(*first), digits(*last));
            let line = format!("bytes={}", members.iter().map(write).collect::<Vec<_>>().join(","));
            let asked: Vec<_> =
                members.iter().map(|member| naive(*member, length)).filter(|bytes| !bytes.is_empty()).collect();
            let common = |left: &Vec<u64>, right: &Vec<u64>| left.iter().any(|at| right.contains(at));
            let pairs = asked.iter().enumerate().flat_map(|(at, left)| asked[at + 1..].iter().map(move |right| (left, right)));
            let overlaps = pairs.filter(|(left, right)| common(left, right)).count();
            let total: usize = asked.iter().map(Vec::len).sum();
            let refused = asked.len() > 16 || overlaps > 2 || total as u64 > length;
            let selected = match of(&line, length) {
                Selection::Unsatisfiable => vec![],
                Selection::One(part) => vec![part.collect::<Vec<_>>()],
                Selection::Many(parts) => parts.into_iter().map(Iterator::collect).collect(),
                Selection::Whole => {
                    prop_assert!(asked.len() > 1 && refused, "{}", line);
                    return Ok(());
                }
            };
            prop_assert!(selected.len() < 2 || !refused, "{}", line);
            prop_assert_eq!(selected, asked, "{}", line);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(range: Vec<u8>, condition: Vec<u8>, length: u64) {
            let mut request = HeaderMap::new();
            for (name, value) in [(RANGE, range), (IF_RANGE, condition)] {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    request.insert(name, value);
                }
            }
            select(&request, &request, length);
        }
    }
}
