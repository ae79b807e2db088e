//! `Cookie`, pair by pair (RFC 6265 §4.2).

use http::HeaderMap;
use http::header::COOKIE;

/// The pairs that are not ignored, of all lines (HTTP/2 may split them: RFC 9113 §8.2.3).
pub(super) fn kept<'a>(request: &'a HeaderMap, ignored: &[String]) -> impl Iterator<Item = &'a [u8]> {
    let pairs = request.get_all(COOKIE).into_iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty() && !is_ignored(pair, ignored))
}

/// A pair without `=` has no name to ignore it by.
fn is_ignored(pair: &[u8], ignored: &[String]) -> bool {
    let Some(end) = pair.iter().position(|byte| *byte == b'=') else { return false };
    let name = pair.get(..end).unwrap_or_default().trim_ascii_end();
    ignored.iter().any(|known| known.as_bytes() == name)
}

/// What is kept, as one line.
pub(super) fn joined(request: &HeaderMap, ignored: &[String]) -> Option<Vec<u8>> {
    let mut pairs = kept(request, ignored);
    let mut line = pairs.next()?.to_vec();
    for pair in pairs {
        line.extend_from_slice(b"; ");
        line.extend_from_slice(pair);
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_cookies_go_by_their_exact_name() {
        let ignored = ["_ga".to_owned(), "_gid".to_owned()];
        for (lines, expected) in [
            (&[][..], None),
            (&[""], None),
            (&[";  ;"], None),
            (&["_ga=1"], None),
            (&["_ga=1; _gid=2;"], None),
            (&["_ga =1"], None),
            (&["_ga=1", "_gid=2"], None),
            (&["a=1;b=2"], Some("a=1; b=2")),
            (&["a=1", "b=2"], Some("a=1; b=2")),
            (&["_ga=1; a=2; _gid=3"], Some("a=2")),
            (&["_ga=1; _ga=2; a=\"_ga=1"], Some("a=\"_ga=1")),
            (&["_ga=\"x; session=1\""], Some("session=1\"")),
            (&["_GA=1"], Some("_GA=1")),
            (&["_ga_X=1"], Some("_ga_X=1")),
            (&["_ga"], Some("_ga")),
            (&["=_ga"], Some("=_ga")),
            (&["_g%61=1"], Some("_g%61=1")),
        ] {
            let request: HeaderMap = lines.iter().map(|line| (COOKIE, line.parse().unwrap())).collect();
            let line = joined(&request, &ignored).map(|line| String::from_utf8(line).unwrap());
            assert_eq!(line.as_deref(), expected, "{lines:?}");
            assert_eq!(kept(&request, &ignored).next().is_some(), expected.is_some(), "{lines:?}");
        }
    }
}
