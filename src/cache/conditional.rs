//! A client's own conditions on a stored response (RFC 9110 §13). `If-Match` and `If-Unmodified-Since` are for the
//! handler alone: a cache has no say in them.

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::date;

/// Whether the client of a GET or HEAD already holds the stored response. `If-None-Match` alone decides where it is
/// present (§13.2.2). A condition that breaks the grammar fails: then the client gets the whole.
pub(super) fn not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        return is_any(request) || names(request, stored).unwrap_or(false);
    }
    let date = |headers, name| date::parse(single(headers, name)?.as_bytes());
    match (date(stored, LAST_MODIFIED), date(request, IF_MODIFIED_SINCE)) {
        (Some(modified), Some(since)) => modified <= since,
        _ => false,
    }
}

/// The only line of a field. Two contradict each other where the field is no list.
pub(super) fn single(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

fn is_any(request: &HeaderMap) -> bool {
    single(request, IF_NONE_MATCH).is_some_and(|line| line.as_bytes().trim_ascii() == b"*")
}

/// Whether `If-None-Match` names the stored tag, compared weakly (§8.8.3.2). `None`: it is no list of tags.
fn names(request: &HeaderMap, stored: &HeaderMap) -> Option<bool> {
    let stored = single(stored, ETAG).and_then(|line| Tag::whole(line.as_bytes()));
    let mut found = false;
    for line in request.get_all(IF_NONE_MATCH) {
        let mut rest = between(line.as_bytes());
        while !rest.is_empty() {
            let (tag, tail) = Tag::first(rest)?;
            found |= stored.is_some_and(|stored| stored.opaque == tag.opaque);
            rest = tail.trim_ascii_start();
            if !rest.is_empty() && !rest.starts_with(b",") {
                return None;
            }
            rest = between(rest);
        }
    }
    Some(found)
}

/// Past commas and whitespace: empty members are none (§5.6.1.2).
fn between(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b',')).unwrap_or(line.len());
    line.get(start..).unwrap_or_default()
}

/// An entity tag (§8.8.3). Spaces in it were legal once, and do no harm.
#[derive(Clone, Copy)]
struct Tag<'a> {
    weak: bool,
    opaque: &'a [u8],
}

impl<'a> Tag<'a> {
    /// The tag that `input` begins with, and what follows it.
    fn first(input: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let strong = input.strip_prefix(b"W/");
        let inside = strong.unwrap_or(input).strip_prefix(b"\"")?;
        let end = inside.iter().position(|byte| *byte == b'"')?;
        Some((Self { weak: strong.is_some(), opaque: inside.get(..end)? }, inside.get(end + 1..)?))
    }

    fn whole(input: &'a [u8]) -> Option<Self> {
        Self::first(input.trim_ascii()).filter(|(_, rest)| rest.is_empty()).map(|(tag, _)| tag)
    }
}

/// Whether two values are one and the same strong tag (§8.8.3.2).
pub(super) fn is_same_strong_tag(left: &[u8], right: &[u8]) -> bool {
    match (Tag::whole(left), Tag::whole(right)) {
        (Some(left), Some(right)) => !left.weak && !right.weak && left.opaque == right.opaque,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(request: &[(&'static str, &[u8])], stored: &[(&'static str, &[u8])]) -> bool {
        let map = |lines: &[(&'static str, &[u8])]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_bytes(value).unwrap());
            }
            headers
        };
        not_modified(&map(request), &map(stored))
    }

    #[test]
    fn tags_compare_weakly() {
        for (asked, tag, expected) in [
            ("\"a\"", "\"a\"", true),
            ("W/\"a\"", "\"a\"", true),
            ("\"a\"", "W/\"a\"", true),
            ("W/\"a\"", "W/\"a\"", true),
            ("\"b\", W/\"a\"", "\"a\"", true),
            ("\"b,\",\"a\"", "\"a\"", true),
            (" , ,\"b\" ,\t\"a\",", "\"a\"", true),
            ("\"\"", "\"\"", true),
            ("\"a\\\"", "\"a\\\"", true),
            ("\"é\"", "\"é\"", true),
            ("\"*\"", "\"a\"", false),
            ("*", "\"a\"", true),
            ("*", "a", true),
            ("*, \"b\"", "\"a\"", false),
            ("\"x, \", \"b\"", "\", \"", false),
            ("\"A\"", "\"a\"", false),
            ("w/\"a\"", "\"a\"", false),
            ("W\"a\"", "\"a\"", false),
            ("W/ \"a\"", "\"a\"", false),
            ("\"a", "\"a\"", false),
            ("\"a\" \"b\"", "\"a\"", false),
            ("\"a\"b", "\"a\"", false),
            ("x\"a\"", "\"a\"", false),
            ("\"a\", b", "\"a\"", false),
            ("a", "\"a\"", false),
            ("a", "a", false),
            ("\"a\"", "a", false),
            ("\"a\"", "\"a\"b", false),
            ("", "\"a\"", false),
            ("", "", false),
        ] {
            let asked_line = [("if-none-match", asked.as_bytes())];
            assert_eq!(check(&asked_line, &[("etag", tag.as_bytes())]), expected, "{asked} against {tag}");
        }
    }

    #[test]
    fn every_line_counts() {
        let (a, b): (&[u8], &[u8]) = (b"\"a\"", b"\"b\"");
        assert!(check(&[("if-none-match", b), ("if-none-match", a)], &[("etag", a)]));
        assert!(!check(&[("if-none-match", a), ("if-none-match", b"*")], &[("etag", b)]));
        assert!(!check(&[("if-none-match", a)], &[("etag", a), ("etag", b)]));
        assert!(!check(&[("if-none-match", a)], &[]));
        assert!(check(&[("if-none-match", b"*")], &[]));
        assert!(check(&[("if-none-match", b"\"\xfc\xff\"")], &[("etag", b"W/\"\xfc\xff\"")]));
    }

    #[test]
    fn dates_decide_only_without_tags() {
        let (old, new): (&[u8], &[u8]) = (b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sun, 06 Nov 1994 08:49:38 GMT");
        for (since, modified, expected) in [
            (old, old, true),
            (new, old, true),
            (old, new, false),
            (b"Sunday, 06-Nov-94 08:49:37 GMT", old, true),
            (b"Sun Nov  6 08:49:37 1994", old, true),
            (b"soon", old, false),
            (new, b"then", false),
        ] {
            let asked = [("if-modified-since", since)];
            assert_eq!(check(&asked, &[("last-modified", modified)]), expected, "{since:?} {modified:?}");
        }
        let twice = [("if-modified-since", new), ("if-modified-since", new)];
        assert!(!check(&twice, &[("last-modified", old)]));
        assert!(!check(&[("if-modified-since", new)], &[("last-modified", old), ("last-modified", old)]));
        assert!(!check(&[("if-modified-since", new)], &[("date", old)]), "Date stands in for nothing");
        assert!(!check(&[("if-modified-since", old)], &[("etag", b"\"a\"")]));
        let both: [(&str, &[u8]); 2] = [("if-none-match", b"\"b\""), ("if-modified-since", new)];
        assert!(!check(&both, &[("etag", b"\"a\""), ("last-modified", old)]));
        let broken: [(&str, &[u8]); 2] = [("if-none-match", b"b"), ("if-modified-since", new)];
        assert!(!check(&broken, &[("last-modified", old)]));
    }

    #[test]
    fn strong_comparison_takes_no_weak_tag() {
        for (left, right, expected) in [
            ("\"a\"", "\"a\"", true),
            ("\"a\"", "\"b\"", false),
            ("W/\"a\"", "W/\"a\"", false),
            ("W/\"a\"", "\"a\"", false),
            ("\"a\"", "W/\"a\"", false),
            ("a", "a", false),
            ("\"a\", \"b\"", "\"a\", \"b\"", false),
        ] {
            assert_eq!(is_same_strong_tag(left.as_bytes(), right.as_bytes()), expected, "{left} {right}");
        }
    }

    proptest! {
        #[test]
        fn a_list_names_exactly_its_members(
            asked in proptest::collection::vec((any::<bool>(), "[a-c, ]{0,2}"), 0..5),
            stored in "[a-c, ]{0,2}",
            comma in "( ,|,\t|, ,)",
        ) {
            let tags: Vec<_> = asked.iter().map(|(weak, tag)| format!("{}\"{tag}\"", if *weak { "W/" } else { "" })).collect();
            let line = tags.join(&comma);
            let expected = asked.iter().any(|(_, tag)| *tag == stored);
            let tag = format!("\"{stored}\"");
            prop_assert_eq!(check(&[("if-none-match", line.as_bytes())], &[("etag", tag.as_bytes())]), expected);
        }
    }
}
