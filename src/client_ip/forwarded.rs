//! RFC 7239 `Forwarded`, read from the right.
//!
//! A proxy appends its element to a line that the client may have started, so the line is split from its end: a quote
//! that the client left open then cannot swallow what the proxy wrote.

use std::borrow::Cow;
use std::net::IpAddr;

use super::address;
use super::walk::Hop;

/// One element, `for=…;proto=…;host=…`. A parameter that is absent or malformed is `None`; an element that breaks the
/// grammar has none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    client: Option<IpAddr>,
    pub(crate) proto: Option<Cow<'a, str>>,
    pub(crate) host: Option<Cow<'a, str>>,
}

impl Hop for Element<'_> {
    fn address(&self) -> Option<IpAddr> {
        self.client
    }
}

/// The elements of one field line, the last one first.
pub(crate) fn elements_from_the_right(line: &[u8]) -> impl Iterator<Item = Element<'_>> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let (before, element) = split_last_element(rest?);
        rest = before;
        Some(parse_element(element).unwrap_or_default())
    })
}

/// Splits at the last comma that is not inside a quoted string.
fn split_last_element(line: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let mut quoted = false;
    for (at, byte) in line.iter().enumerate().rev() {
        match byte {
            b'"' if !(quoted && is_escaped(line, at)) => quoted = !quoted,
            b',' if !quoted => return (line.get(..at), line.get(at + 1..).unwrap_or_default()),
            _ => {}
        }
    }
    (None, line)
}

/// Whether an odd number of backslashes stands before `at`.
fn is_escaped(line: &[u8], at: usize) -> bool {
    line.iter().take(at).rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// `[ pair ] *( ";" [ pair ] )`, every parameter at most once (section 4). Blanks around `;` are tolerated.
///
/// Of bytes: a proxy may quote what a client sent it, such as its `Host`, and a byte that is no UTF-8 in there must not
/// hide the client.
fn parse_element(element: &[u8]) -> Option<Element<'_>> {
    let mut found = Element::default();
    let mut seen_for = false;
    let mut rest = trim(element);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(b";") {
            rest = trim(after);
            continue;
        }
        let ((name, value), after) = parse_pair(rest)?;
        let fresh = if name.eq_ignore_ascii_case(b"for") {
            found.client = address::parse(&text(value));
            !std::mem::replace(&mut seen_for, true)
        } else if name.eq_ignore_ascii_case(b"proto") {
            found.proto.replace(text(value)).is_none()
        } else if name.eq_ignore_ascii_case(b"host") {
            found.host.replace(text(value)).is_none()
        } else {
            true
        };
        rest = trim(after);
        if !fresh || !(rest.is_empty() || rest.starts_with(b";")) {
            return None;
        }
    }
    Some(found)
}

type Pair<'a> = (&'a [u8], Cow<'a, [u8]>);

/// `token "=" ( token / quoted-string )` and what follows.
fn parse_pair(text: &[u8]) -> Option<(Pair<'_>, &[u8])> {
    let (name, value) = split_token(text)?;
    let value = value.strip_prefix(b"=")?;
    if let Some(quoted) = value.strip_prefix(b"\"") {
        let (value, rest) = parse_quoted(quoted)?;
        return Some(((name, value), rest));
    }
    let (value, rest) = split_token(value)?;
    Some(((name, Cow::Borrowed(value)), rest))
}

fn split_token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| !is_token(*byte)).unwrap_or(text.len());
    text.split_at_checked(end).filter(|(token, _)| !token.is_empty())
}

/// The content of a quoted string whose opening quote has been read, unescaped, and what follows it.
fn parse_quoted(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let plain = text.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    let (start, rest) = text.split_at_checked(plain)?;
    if let Some(rest) = rest.strip_prefix(b"\"") {
        return Some((Cow::Borrowed(start), rest));
    }
    let (mut value, mut rest) = (start.to_vec(), rest);
    loop {
        match rest {
            [b'"', after @ ..] => return Some((Cow::Owned(value), after)),
            [b'\\', byte, after @ ..] | [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}

/// What is no UTF-8 is neither an address, a scheme nor a host: as malformed as nothing.
fn text(value: Cow<'_, [u8]>) -> Cow<'_, str> {
    match value {
        Cow::Borrowed(bytes) => Cow::Borrowed(str::from_utf8(bytes).unwrap_or_default()),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).unwrap_or_default()),
    }
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Vec<(Option<String>, Option<String>, Option<String>)> {
        elements_from_the_right(line.as_bytes())
            .map(|e| (e.client.map(|ip| ip.to_string()), e.proto.map(Cow::into_owned), e.host.map(Cow::into_owned)))
            .collect()
    }

    fn one(client: &str) -> (Option<String>, Option<String>, Option<String>) {
        ((!client.is_empty()).then(|| client.to_owned()), None, None)
    }

    #[test]
    fn the_grammar() {
        for (line, client) in [
            ("for=192.0.2.43", "192.0.2.43"),
            ("For=192.0.2.43", "192.0.2.43"),
            ("for=\"192.0.2.43:47011\"", "192.0.2.43"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=\"\\[2001:db8::1\\]\"", "2001:db8::1"),
            ("by=203.0.113.43;for=192.0.2.60;secret=x", "192.0.2.60"),
            (" for=192.0.2.60 ; by=_me ", "192.0.2.60"),
            (";;for=192.0.2.60;", "192.0.2.60"),
            ("ext=\"a,b;c=\\\"d\";for=192.0.2.60", "192.0.2.60"),
            ("for=unknown", ""),
            ("for=_SEVKISEK", ""),
            ("for=\"_gazonk:_port\"", ""),
            ("", ""),
        ] {
            assert_eq!(parse(line), [one(client)], "{line}");
        }
    }

    #[test]
    fn a_broken_element_says_nothing() {
        for line in [
            "for=1.2.3.4;for=5.6.7.8",
            "for=1.2.3.4;For=unknown",
            "for=1.2.3.4 proto=https",
            "for = 1.2.3.4",
            "for=1.2.3.4;proto",
            "=1.2.3.4",
            "for=\"1.2.3.4",
            "for=1.2.3.4\"",
            "for=\"1.2.3.4\"x",
            "for=;proto=https",
            "for=1.2.3.4:80",
            "for=[2001:db8::1]",
            "proto=http;proto=https",
            "for=\"1.2.3.4\\",
            "\"for=1.2.3.4\"",
            "fo r=1.2.3.4",
            "for=1.2.3.4;a b=c",
        ] {
            assert_eq!(parse(line), [one("")], "{line}");
        }
    }

    /// RFC 7239 sections 4, 6 and 7; the nearest hop is the last one.
    #[test]
    fn the_examples_of_the_rfc() {
        for (line, clients) in [
            ("for=\"_gazonk\"", &[""][..]),
            ("For=\"[2001:db8:cafe::17]:4711\"", &["2001:db8:cafe::17"]),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", &["192.0.2.60"]),
            ("for=192.0.2.43, for=198.51.100.17", &["198.51.100.17", "192.0.2.43"]),
            ("for=_hidden, for=_SEVKISEK", &["", ""]),
            ("for=192.0.2.43,for=\"[2001:db8:cafe::17]\",for=unknown", &["", "2001:db8:cafe::17", "192.0.2.43"]),
            ("for=192.0.2.43, for=\"[2001:db8:cafe::17]\", for=unknown", &["", "2001:db8:cafe::17", "192.0.2.43"]),
            ("for=192.0.2.43, for=\"[2001:db8:cafe::17]\"", &["2001:db8:cafe::17", "192.0.2.43"]),
            (
                "for=192.0.2.43, for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com",
                &["198.51.100.17", "192.0.2.43"],
            ),
        ] {
            let found: Vec<_> = parse(line).into_iter().map(|(client, ..)| client.unwrap_or_default()).collect();
            assert_eq!(found, clients, "{line}");
        }
        let last = parse("for=192.0.2.43, for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com").remove(0);
        assert_eq!((last.1.as_deref(), last.2.as_deref()), (Some("http"), Some("example.com")));
    }

    #[test]
    fn a_byte_that_is_no_text_hides_no_client() {
        let element = parse_element(b"for=192.0.2.1;host=\"shop\xfc.example\";x=\"\\\xfc\";proto=https").unwrap();
        assert_eq!(element.client, Some("192.0.2.1".parse().unwrap()));
        assert_eq!((element.host.as_deref(), element.proto.as_deref()), (Some(""), Some("https")));
        assert_eq!(parse_element(b"for=192.0.2.1;x=\xfc"), None, "a token is ASCII");
    }

    #[test]
    fn elements_come_from_the_right() {
        assert_eq!(
            parse("for=1.1.1.1;x=\"a, b\",for=\"[2001:db8::1]\";proto=https;host=\"a.example:81\" , for=2.2.2.2"),
            [
                one("2.2.2.2"),
                (Some("2001:db8::1".into()), Some("https".into()), Some("a.example:81".into())),
                one("1.1.1.1"),
            ]
        );
    }

    #[test]
    fn an_open_quote_swallows_nothing() {
        for forged in ["for=\"", "for=\"x\\", "for=6.6.6.6;x=\"\\\\\\", "\"", "\\", "for=6.6.6.6;host=\"a\\\""] {
            let line = format!("{forged}, for=\"[2001:db8::1]:80\";host=\"a\\\"b\\\\\"");
            assert_eq!(parse(&line).first().unwrap().0.as_deref(), Some("2001:db8::1"), "{line}");
            assert_eq!(parse(&line).first().unwrap().2.as_deref(), Some("a\"b\\"), "{line}");
        }
    }

    proptest! {
        #[test]
        fn whatever_stands_in_front_the_last_element_is_the_same(
            forged in "([a-z=;, \\\\\"]|for=|[0-9.]){0,40}",
            (host, quoted) in "[a-z,;\\\\\"]{0,12}".prop_map(|h| {
                (h.clone(), h.replace('\\', "\\\\").replace('"', "\\\""))
            }),
        ) {
            let line = format!("{forged},for=192.0.2.1;host=\"{quoted}\"");
            let last = elements_from_the_right(line.as_bytes()).next().unwrap();
            prop_assert_eq!(last.client, Some("192.0.2.1".parse().unwrap()));
            prop_assert_eq!(last.host.as_deref(), Some(host.as_str()));
        }

        #[test]
        fn garbage_never_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            elements_from_the_right(&line).for_each(drop);
        }

        /// Whoever writes an element quotes what it must: `"` and `\`.
        #[test]
        fn quoted_strings_come_back_as_they_were(value in ".{0,20}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!("host=\"{quoted}\";for=192.0.2.1");
            let element = parse_element(line.as_bytes()).unwrap();
            prop_assert_eq!(element.host.as_deref(), Some(value.as_str()));
            prop_assert_eq!(element.client, Some("192.0.2.1".parse().unwrap()));
        }
    }
}
