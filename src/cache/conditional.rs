//! A client's own conditions on a stored response (RFC 9110 §13).

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue};

use super::storing::parse_date;

/// Whether the request asks for the response only if it has changed.
pub(super) fn is_conditional(request: &HeaderMap) -> bool {
    request.contains_key(IF_NONE_MATCH) || request.contains_key(IF_MODIFIED_SINCE)
}

/// Whether the client already holds the stored response. `If-None-Match` alone decides where it is present (§13.2.2).
pub(super) fn not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let tag = stored.get(ETAG).map(|tag| weak(tag.as_bytes()));
        return request.get_all(IF_NONE_MATCH).iter().any(|line| names(line.as_bytes(), tag));
    }
    let since = single(request, IF_MODIFIED_SINCE).and_then(|value| parse_date(value.as_bytes()));
    let modified = stored.get(LAST_MODIFIED).and_then(|value| parse_date(value.as_bytes()));
    matches!((modified, since), (Some(modified), Some(since)) if modified <= since)
}

fn single(headers: &HeaderMap, name: http::HeaderName) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

/// Weak comparison (§8.8.3.2) looks at the opaque part only.
fn weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether one line of `If-None-Match` names `tag`; commas may stand inside tags.
fn names(line: &[u8], tag: Option<&[u8]>) -> bool {
    if line.trim_ascii() == b"*" {
        return true;
    }
    let Some(tag) = tag else { return false };
    let mut rest = line;
    while let Some(open) = rest.iter().position(|byte| *byte == b'"') {
        let Some((_, from_open)) = rest.split_at_checked(open) else { return false };
        let Some(close) = from_open.iter().skip(1).position(|byte| *byte == b'"') else { return false };
        let Some((member, after)) = from_open.split_at_checked(close + 2) else { return false };
        if member == tag {
            return true;
        }
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: &[(&'static str, &str)], stored: &[(&'static str, &str)]) -> bool {
        let map = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().unwrap());
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
            ("\"b\", W/\"a\"", "\"a\"", true),
            ("\"b,\",\"a\"", "\"a\"", true),
            ("\"x, \", \"b\"", "\", \"", false),
            ("*", "\"a\"", true),
            ("\"A\"", "\"a\"", false),
            ("\"a", "\"a\"", false),
            ("a", "\"a\"", false),
            ("", "\"a\"", false),
        ] {
            assert_eq!(check(&[("if-none-match", asked)], &[("etag", tag)]), expected, "{asked} against {tag}");
        }
        assert!(check(&[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], &[("etag", "\"a\"")]));
        assert!(!check(&[("if-none-match", "\"a\"")], &[]));
        assert!(check(&[("if-none-match", "*")], &[]));
    }

    #[test]
    fn dates_decide_only_without_tags() {
        let (old, new) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT");
        assert!(check(&[("if-modified-since", old)], &[("last-modified", old)]));
        assert!(check(&[("if-modified-since", new)], &[("last-modified", old)]));
        assert!(!check(&[("if-modified-since", old)], &[("last-modified", new)]));
        assert!(!check(&[("if-modified-since", "soon")], &[("last-modified", old)]));
        assert!(!check(&[("if-modified-since", new), ("if-modified-since", new)], &[("last-modified", old)]));
        assert!(!check(&[("if-modified-since", old)], &[("etag", "\"a\"")]));
        let both = [("if-none-match", "\"b\""), ("if-modified-since", new)];
        assert!(!check(&both, &[("etag", "\"a\""), ("last-modified", old)]));
    }
}
