//! The grammar that `Cache-Control` and `Pragma` share (RFC 9110 §5.6): names, values and commas.

/// `name` or `name=value`.
pub(super) struct Directive<'a> {
    pub(super) name: &'a [u8],
    /// Of a quoted string: what is inside, escapes and all.
    pub(super) value: Option<&'a [u8]>,
}

/// A part between commas that is no directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The directives of one line, as long as they can be told apart.
pub(super) struct Directives<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Directives<'a> {
    type Item = Result<Directive<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = skip(self.0, |byte| matches!(byte, b' ' | b'\t' | b','));
        if rest.is_empty() {
            self.0 = rest;
            return None;
        }
        let (part, rest) = match directive(rest) {
            Some((directive, rest)) => (Ok(directive), rest),
            None => (Err(Malformed), after_comma(rest)),
        };
        self.0 = rest;
        Some(part)
    }
}

/// Past the next comma that is in no quoted string; past everything where a string does not end.
fn after_comma(mut input: &[u8]) -> &[u8] {
    while let Some((first, rest)) = input.split_first() {
        input = match first {
            b',' => return rest,
            b'"' => quoted_string(rest).map_or(b"".as_slice(), |(_, rest)| rest),
            _ => rest,
        };
    }
    input
}

/// One directive at the start of `input`, and what follows its comma.
fn directive(input: &[u8]) -> Option<(Directive<'_>, &[u8])> {
    let (name, rest) = token(input)?;
    let (value, rest) = match rest.strip_prefix(b"=") {
        None => (None, rest),
        Some(rest) => match rest.strip_prefix(b"\"") {
            None => token(rest).map(|(value, rest)| (Some(value), rest))?,
            Some(quoted) => quoted_string(quoted).map(|(value, rest)| (Some(value), rest))?,
        },
    };
    let rest = skip(rest, |byte| matches!(byte, b' ' | b'\t'));
    match rest.split_first() {
        None => Some((Directive { name, value }, rest)),
        Some((b',', rest)) => Some((Directive { name, value }, rest)),
        Some(_) => None,
    }
}

/// A token (RFC 9110 §5.6.2) of at least one byte, and what follows it.
fn token(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(input.len());
    if end == 0 { None } else { input.split_at_checked(end) }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The raw inside of a quoted string whose opening quote is gone, and what follows the closing one.
fn quoted_string(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    for (at, byte) in input.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some((input.get(..at)?, input.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

fn skip(input: &[u8], matching: impl Fn(u8) -> bool) -> &[u8] {
    let start = input.iter().position(|byte| !matching(*byte)).unwrap_or(input.len());
    input.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As text, `!` for what is malformed.
    fn parts(line: &str) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let part = |part: Result<Directive<'_>, Malformed>| match part {
            Ok(Directive { name, value: None }) => text(name),
            Ok(Directive { name, value: Some(value) }) => format!("{}={}", text(name), text(value)),
            Err(Malformed) => "!".to_owned(),
        };
        Directives(line.as_bytes()).map(part).collect()
    }

    #[test]
    fn what_is_malformed_ends_at_its_comma() {
        for (line, expected) in [
            ("", ""),
            (" ,\t, ", ""),
            ("a", "a"),
            ("a, b=c ,d=\"e, f\",g=\"\"\t", "a|b=c|d=e, f|g="),
            ("a=\"\\\"\\\\\", b", "a=\\\"\\\\|b"),
            ("a b, c", "!|c"),
            ("a =b, c", "!|c"),
            ("a= b, c", "!|c"),
            ("a=, c", "!|c"),
            ("=b, c", "!|c"),
            ("a;b, c", "!|c"),
            ("\"a, b\", c", "!|c"),
            ("a=\"b\"c, d", "!|d"),
            ("a x=\"b, no-store\", c", "!|c"),
            ("a=\"b, c", "!"),
            ("a b\", c", "!"),
            ("a='b, c'", "a='b|c'"),
        ] {
            assert_eq!(parts(line).join("|"), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn well_formed_parts_come_out_as_they_went_in(
            members in proptest::collection::vec(("[!#$%&'*+.^_`|~0-9A-Za-z-]{1,5}",
                proptest::option::of(prop_oneof!["[a-z0-9-]{1,5}", "([ !#-\\[\\]-~]|\\\\[ -~]){0,5}"])), 0..5),
            comma in "( ,|,\t|,|, ,)",
        ) {
            let plain = |value: &str| !value.is_empty() && value.bytes().all(is_token_byte);
            let write = |(name, value): &(String, Option<String>)| match value {
                None => name.clone(),
                Some(value) if plain(value) => format!("{name}={value}"),
                Some(value) => format!("{name}=\"{value}\""),
            };
            let line = members.iter().map(write).collect::<Vec<_>>().join(&comma);
            let expected: Vec<_> = members.iter().map(|(name, value)| match value {
                None => name.clone(),
                Some(value) => format!("{name}={value}"),
            }).collect();
            prop_assert_eq!(parts(&line), expected);
        }
    }
}
