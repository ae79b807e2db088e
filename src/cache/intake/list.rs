//! Fields of which the cache knows only that they may be lists (RFC 9110 §5.6.1), or that they are none.

use std::borrow::Cow;

use http::HeaderValue;
use http::header::GetAll;

/// All lines as one, without the whitespace at the ends and, outside of quotes, around commas (RFC 9111 §4.1).
pub(super) fn joined(lines: GetAll<'_, HeaderValue>) -> Option<Cow<'_, [u8]>> {
    let mut lines = lines.into_iter().map(|line| line.as_bytes().trim_ascii());
    let first = lines.next()?;
    let second = lines.next();
    if second.is_none() && !has_space_at_a_comma(first) {
        return Some(Cow::Borrowed(first));
    }
    let mut whole = first.to_vec();
    for line in second.into_iter().chain(lines) {
        whole.push(b',');
        whole.extend_from_slice(line);
    }
    Some(Cow::Owned(tight(&whole)))
}

/// All lines of a field that is no list, byte for byte. Who has one line never shares a value with who has two.
pub(super) fn as_they_stand(lines: GetAll<'_, HeaderValue>) -> Option<Cow<'_, [u8]>> {
    let mut lines = lines.into_iter().map(HeaderValue::as_bytes);
    let first = lines.next()?;
    Some(lines.fold(Cow::Borrowed(first), |whole, line| Cow::Owned([&*whole, line].join(&b'\t'))))
}

fn has_space_at_a_comma(value: &[u8]) -> bool {
    value.windows(2).any(|pair| matches!(pair, [b' ' | b'\t', b','] | [b',', b' ' | b'\t']))
}

fn tight(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let (mut quoted, mut escaped, mut after_comma) = (false, false, true);
    for &byte in value {
        let space = matches!(byte, b' ' | b'\t');
        if space && after_comma {
            continue;
        }
        if byte == b',' && !quoted {
            out.truncate(out.trim_ascii_end().len());
        }
        after_comma = byte == b',' && !quoted;
        quoted = if byte == b'"' && !escaped { !quoted } else { quoted };
        escaped = byte == b'\\' && quoted && !escaped;
        out.push(byte);
    }
    out.truncate(out.trim_ascii_end().len());
    out
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;

    fn of(lines: &[&str]) -> Option<String> {
        let headers: HeaderMap = lines.iter().map(|line| (http::header::ACCEPT, line.parse().unwrap())).collect();
        Some(String::from_utf8(joined(headers.get_all("accept"))?.into_owned()).unwrap())
    }

    #[test]
    fn whitespace_around_commas_says_nothing_outside_of_quotes() {
        for (lines, expected) in [
            (&[][..], None),
            (&[""], Some("")),
            (&["1,2"], Some("1,2")),
            (&[" 1, 2 "], Some("1,2")),
            (&["1\t ,\t 2"], Some("1,2")),
            (&["1", "2"], Some("1,2")),
            (&["1", "", "2"], Some("1,,2")),
            (&["a b, c"], Some("a b,c")),
            (&[r#""a, b" , c"#], Some(r#""a, b",c"#)),
            (&[r#""a\", b" , c"#], Some(r#""a\", b",c"#)),
            (&[r#""a\\" , c"#], Some(r#""a\\",c"#)),
            (&[r#"\" , ", c"#], Some(r#"\" , ",c"#)),
            (&[r#""open , c"#], Some(r#""open , c"#)),
            (&[r#""open , "#, "c"], Some(r#""open ,,c"#)),
        ] {
            assert_eq!(of(lines).as_deref(), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn again_changes_nothing_and_only_whitespace_goes(line in r#"[a,\\" \t]{0,12}"#) {
            let once = of(&[&line]).unwrap();
            prop_assert_eq!(of(&[&once]).unwrap(), once.clone());
            let dense = |text: &str| text.replace([' ', '\t'], "");
            prop_assert_eq!(dense(&once), dense(&line));
        }
    }
}
