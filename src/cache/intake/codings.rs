//! `Accept-Encoding` in one spelling (RFC 9110 §12.5.3).

use std::sync::LazyLock;

use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue};

/// What servers compress with, in the order in which they prefer it.
const CODINGS: [&str; 4] = ["zstd", "br", "gzip", "deflate"];
/// The bit of a client that refuses the plain body.
const NO_IDENTITY: usize = 1 << CODINGS.len();

/// A line for every set of codings.
static LINES: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| (0..2 * NO_IDENTITY).filter_map(line).collect());

fn line(set: usize) -> Option<HeaderValue> {
    let mut members: Vec<&str> = (0..).zip(CODINGS).filter(|(bit, _)| set & (1 << bit) != 0).map(|(_, c)| c).collect();
    if set & NO_IDENTITY != 0 {
        members.push("identity;q=0");
    } else if members.is_empty() {
        members.push("identity");
    }
    HeaderValue::from_str(&members.join(", ")).ok()
}

/// What a request says of one coding.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Said {
    #[default]
    Nothing,
    Yes,
    No,
}

impl Said {
    /// One refusal is enough.
    fn hear(&mut self, accepted: bool) {
        *self = if accepted && *self != Self::No { Self::Yes } else { Self::No };
    }

    fn or(self, other: Self) -> Self {
        if self == Self::Nothing { other } else { self }
    }
}

/// The known codings that a request accepts, always in the same words; weights other than 0 say nothing. `None`: there
/// is no such field, which is not the same as to accept nothing.
pub(super) fn canonical(request: &HeaderMap) -> Option<&'static HeaderValue> {
    let mut lines = request.get_all(ACCEPT_ENCODING).into_iter().peekable();
    lines.peek()?;
    let (mut codings, mut identity, mut any) = ([Said::Nothing; CODINGS.len()], Said::Nothing, Said::Nothing);
    for member in lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')) {
        let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let name = if name.eq_ignore_ascii_case(b"x-gzip") { b"gzip" } else { name };
        let said = match name {
            b"*" => Some(&mut any),
            name if name.eq_ignore_ascii_case(b"identity") => Some(&mut identity),
            name => CODINGS
                .iter()
                .zip(&mut codings)
                .find_map(|(coding, said)| name.eq_ignore_ascii_case(coding.as_bytes()).then_some(said)),
        };
        // A weight that is none says nothing of a coding.
        if let (Some(said), Some(accepted)) = (said, accepts(parts)) {
            said.hear(accepted);
        }
    }
    let accepted =
        (0..).zip(codings).filter(|(_, said)| said.or(any) == Said::Yes).map(|(bit, _)| 1 << bit).sum::<usize>();
    LINES.get(accepted + if identity.or(any) == Said::No { NO_IDENTITY } else { 0 })
}

/// Whether the weight is above 0. `None`: there is one that breaks the grammar.
fn accepts<'a>(mut parameters: impl Iterator<Item = &'a [u8]>) -> Option<bool> {
    let Some(weight) = parameters.next() else { return Some(true) };
    let [b'q' | b'Q', b'=', whole, fraction @ ..] = weight else { return None };
    let digits = match fraction {
        [] => fraction,
        [b'.', digits @ ..] if digits.len() <= 3 => digits,
        _ => return None,
    };
    let zeros = digits.iter().all(|digit| *digit == b'0');
    match whole {
        b'0' if digits.iter().all(u8::is_ascii_digit) => Some(!zeros),
        b'1' if zeros => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(lines: &[&str]) -> Option<&'static str> {
        let request: HeaderMap = lines.iter().map(|line| (ACCEPT_ENCODING, line.parse().unwrap())).collect();
        canonical(&request).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn one_spelling_for_what_is_acceptable() {
        for (lines, expected) in [
            (&[][..], None),
            (&[""], Some("identity")),
            (&["identity"], Some("identity")),
            (&["compress, exi, dcb"], Some("identity")),
            (&["gzip, deflate, br, zstd"], Some("zstd, br, gzip, deflate")),
            (&["gzip,deflate", "br;q=1.0, zstd;q=0.001"], Some("zstd, br, gzip, deflate")),
            (&["GZip ; q=0.5"], Some("gzip")),
            (&["x-gzip"], Some("gzip")),
            (&["gzip;q=0, br"], Some("br")),
            (&["gzip;q=0.000"], Some("identity")),
            (&["gzip, gzip;q=0"], Some("identity")),
            (&["gzip;q=0, gzip"], Some("identity")),
            (&["*"], Some("zstd, br, gzip, deflate")),
            (&["*, br;q=0"], Some("zstd, gzip, deflate")),
            (&["gzip, *;q=0"], Some("gzip, identity;q=0")),
            (&["gzip, identity, *;q=0"], Some("gzip")),
            (&["gzip, identity;q=0"], Some("gzip, identity;q=0")),
            (&["identity;q=0"], Some("identity;q=0")),
            (&["*;q=0"], Some("identity;q=0")),
            (&["*, identity;q=0"], Some("zstd, br, gzip, deflate, identity;q=0")),
            (&["gzip;q=2"], Some("identity")),
            (&["gzip;q="], Some("identity")),
            (&["gzip;q=0.0001"], Some("identity")),
            (&["gzip;q=1.001"], Some("identity")),
            (&["gzip;q=-1"], Some("identity")),
            (&["gzip;level=9"], Some("identity")),
            (&["identity;q=x"], Some("identity")),
        ] {
            assert_eq!(of(lines), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn again_changes_nothing(
            members in proptest::collection::vec("(gzip|br|zstd|deflate|identity|\\*|x)(;q=(0|1|0\\.5|x))?", 0..6)
        ) {
            let once = of(&[&members.join(",")]).unwrap();
            prop_assert_eq!(of(&[once]), Some(once));
        }
    }
}
