//! `Cache-Control` of a response, read so that doubt never makes it more cacheable.

use http::HeaderMap;
use http::header::CACHE_CONTROL;

/// RFC 9111 §1.2.2: an age beyond what can be represented counts as 2^31 seconds.
pub(super) const MAX_DELTA_SECONDS: u64 = 1 << 31;

/// A directive that takes a number of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Seconds {
    #[default]
    Absent,
    Valid(u64),
    /// Present, but without a usable value, or with two different ones: counts as already stale.
    Invalid,
}

impl Seconds {
    fn merge(&mut self, value: Option<&[u8]>) {
        let parsed = value.and_then(delta_seconds).map_or(Self::Invalid, Self::Valid);
        *self = if *self == Self::Absent || *self == parsed { parsed } else { Self::Invalid };
    }
}

/// What the response says about storing it (RFC 9111 §5.2.2), all field lines together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CacheControl {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) max_age: Seconds,
    pub(super) s_maxage: Seconds,
    /// Some part of the field is not what the grammar allows: nothing in it can be relied on.
    pub(super) malformed: bool,
}

impl CacheControl {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            control.line(line.as_bytes());
        }
        control
    }

    fn line(&mut self, mut rest: &[u8]) {
        loop {
            rest = skip(rest, |byte| matches!(byte, b' ' | b'\t' | b','));
            if rest.is_empty() {
                return;
            }
            let Some((directive, tail)) = directive(rest) else {
                self.malformed = true;
                return;
            };
            self.apply(directive);
            rest = tail;
        }
    }

    fn apply(&mut self, Directive { name, value }: Directive<'_>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("no-store") => self.no_store = true,
            () if is("no-cache") => self.no_cache = true,
            () if is("private") => self.private = true,
            () if is("public") => self.public = true,
            () if is("must-revalidate") => self.must_revalidate = true,
            () if is("max-age") => self.max_age.merge(value),
            () if is("s-maxage") => self.s_maxage.merge(value),
            () => {}
        }
    }
}

/// Decimal digits only; saturates.
pub(super) fn delta_seconds(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some((sum.saturating_mul(10).saturating_add(digit)).min(MAX_DELTA_SECONDS))
    })
}

struct Directive<'a> {
    name: &'a [u8],
    /// Of a quoted string: what is inside.
    value: Option<&'a [u8]>,
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
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn parse(lines: &[&str]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().unwrap());
        }
        CacheControl::of(&headers)
    }

    #[test]
    fn names_are_read_in_any_case_and_on_every_line() {
        let control = parse(&["Private, MAX-AGE=60", "NO-STORE", "x=\"a, no-cache\", S-MaxAge=\"10\""]);
        assert!(control.private && control.no_store && !control.no_cache && !control.malformed);
        assert_eq!((control.max_age, control.s_maxage), (Seconds::Valid(60), Seconds::Valid(10)));
    }

    #[test]
    fn qualified_forms_count_as_unqualified() {
        let control = parse(&["private=\"set-cookie\", no-cache=\"x, max-age=5\""]);
        assert!(control.private && control.no_cache);
        assert_eq!(control.max_age, Seconds::Absent);
    }

    #[test]
    fn seconds() {
        for (value, expected) in [
            ("max-age=0", Seconds::Valid(0)),
            ("max-age=00060", Seconds::Valid(60)),
            ("max-age=60, max-age=60", Seconds::Valid(60)),
            ("max-age=2147483649", Seconds::Valid(MAX_DELTA_SECONDS)),
            ("max-age=99999999999999999999999999", Seconds::Valid(MAX_DELTA_SECONDS)),
            ("max-age=60, max-age=61", Seconds::Invalid),
            ("max-age=60, max-age", Seconds::Invalid),
            ("max-age", Seconds::Invalid),
            ("max-age=\"\"", Seconds::Invalid),
            ("max-age=-1", Seconds::Invalid),
            ("max-age=1.5", Seconds::Invalid),
            ("max-age=0x10", Seconds::Invalid),
            ("max-age=60s", Seconds::Invalid),
            ("xmax-age=60", Seconds::Absent),
        ] {
            assert_eq!(parse(&[value]).max_age, expected, "{value}");
        }
    }

    #[test]
    fn broken_syntax_is_malformed() {
        for value in [
            "max-age =60",
            "max-age= 60",
            "max-age=",
            "a=\"b",
            "a b",
            "=60",
            "max-age=60;public",
            "\"no-store\"",
            "a=\"b\"c",
        ] {
            assert!(parse(&[value]).malformed, "{value}");
        }
        for value in ["", ",", " , ,", "a", "a=b", "a=\"\\\"\"", "a=\"b\" , c\t"] {
            assert!(!parse(&[value]).malformed, "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_store_is_never_missed_in_what_is_well_formed(
            before in proptest::collection::vec("[a-z]{1,8}(=[a-z0-9]{1,5}|=\"[a-z ,=]{0,9}\")?", 0..4),
            upper: bool,
        ) {
            let mut members = before;
            members.push(if upper { "NO-STORE".into() } else { "no-store".into() });
            let control = parse(&[&members.join(" ,")]);
            prop_assert!(control.no_store && !control.malformed);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                CacheControl::of(&HeaderMap::from_iter([(CACHE_CONTROL, value)]));
            }
        }
    }
}
