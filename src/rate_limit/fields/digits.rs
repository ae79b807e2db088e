//! Numbers as text, without the machinery of `format!`.

use http::HeaderValue;

/// How many digits a number has.
pub(crate) fn count(number: u64) -> usize {
    number.checked_ilog10().and_then(|digits| usize::try_from(digits).ok()).unwrap_or(0) + 1
}

pub(crate) fn push(text: &mut Vec<u8>, number: u64) {
    let start = text.len();
    let mut rest = number;
    loop {
        text.push(b'0' + u8::try_from(rest % 10).unwrap_or_default());
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if let Some(digits) = text.get_mut(start..) {
        digits.reverse();
    }
}

/// A field's value that is a number.
pub(crate) fn value(number: u64) -> HeaderValue {
    let mut text = Vec::with_capacity(count(number));
    push(&mut text, number);
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_standard_library_writes_them() {
        let powers = (0..20).map(|exponent| 10_u64.pow(exponent));
        for number in powers.flat_map(|n| [n - 1, n, n + 1]).chain([u64::MAX, u32::MAX.into()]) {
            let mut text = b"x".to_vec();
            push(&mut text, number);
            assert_eq!(text, format!("x{number}").as_bytes());
            assert_eq!(count(number), text.len() - 1);
            assert_eq!(value(number), number.to_string());
        }
    }
}
