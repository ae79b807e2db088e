//! Values that all responses share.
//!
//! A `HeaderValue` of its own text counts its copies, and all threads would count at one place, twice per response: with
//! two threads 91 ns instead of 9. Of static text it counts nothing. So the texts that layers announce are kept for the
//! life of the process: each once, at most [`MOST`] of them. Only beyond that copies are counted.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use http::HeaderValue;

/// An application has as many policies as its source has, and as many quotas as somebody sets by hand.
const MOST: usize = 1024;

static KEPT: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// A value of this text, which must be visible ASCII.
pub(crate) fn lasting(text: String) -> HeaderValue {
    kept(&KEPT, text).map_or_else(
        |text| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("")),
        HeaderValue::from_static,
    )
}

fn kept(texts: &Mutex<BTreeSet<&'static str>>, text: String) -> Result<&'static str, String> {
    let mut texts = texts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = texts.get(text.as_str()) {
        return Ok(known);
    }
    let visible = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if !visible || texts.len() >= MOST {
        return Err(text);
    }
    let text: &'static str = text.leak();
    texts.insert(text);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_not_too_many_are() {
        let texts = Mutex::default();
        let first = kept(&texts, "100;w=60".to_owned()).unwrap();
        let again = kept(&texts, "100;w=60".to_owned()).unwrap();
        assert_eq!((first, first.as_ptr()), ("100;w=60", again.as_ptr()));
        for number in 1..MOST {
            kept(&texts, number.to_string()).unwrap();
        }
        assert_eq!(kept(&texts, "one too many".to_owned()), Err("one too many".to_owned()));
        assert_eq!(kept(&texts, "100;w=60".to_owned()), Ok(first));
        assert_eq!(texts.into_inner().unwrap().len(), MOST);
    }

    #[test]
    fn what_is_no_value_is_an_empty_one() {
        assert_eq!(lasting("a\nb".to_owned()), "");
        assert_eq!(lasting("a b".to_owned()), "a b");
    }
}
