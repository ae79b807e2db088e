//! Dates of fields, read as strictly as RFC 9110 §5.6.7 writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

/// `Wednesday, 09-Nov-94 08:49:37 GMT`
const LONGEST: usize = 33;

/// Any of the three forms, letters in any case (RFC 9111 §4.2). Years of two digits are those from 1970 to 2069. A leap
/// second is the one before it: rather too early than too late.
pub(super) fn parse(value: &[u8]) -> Option<SystemTime> {
    let value = value.trim_ascii();
    let mut buffer = [0; LONGEST];
    let text = buffer.get_mut(..value.len())?;
    text.copy_from_slice(value);
    capitalise(text);
    // `httpdate` takes anything for this space in the form of RFC 850.
    let minutes = text.iter().position(|byte| *byte == b':')?;
    if text.get(minutes.checked_sub(3)?) != Some(&b' ') {
        return None;
    }
    if let Some(time) = text.get_mut(minutes - 2..minutes + 6).filter(|time| **time == *b"23:59:60") {
        time.copy_from_slice(b"23:59:59");
    }
    read(text).or_else(|| read_past_the_day_of_the_week(text))
}

/// As RFC 9110 prefers it. `None`: before 1970 or after 9999, where a clock is wrong and `httpdate` panics.
pub(super) fn write(time: SystemTime) -> Option<HeaderValue> {
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    time.duration_since(UNIX_EPOCH).ok().filter(|since| *since < YEAR_10000)?;
    HeaderValue::from_str(&httpdate::fmt_http_date(time)).ok()
}

fn read(text: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(text).ok()?).ok()
}

/// `httpdate` asks for the right one, which says nothing that the date does not.
fn read_past_the_day_of_the_week(text: &mut [u8]) -> Option<SystemTime> {
    const DAYS: [&[u8; 3]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
    let told = *text.first_chunk::<3>()?;
    if !DAYS.contains(&&told) {
        return None;
    }
    DAYS.into_iter().find_map(|day| {
        text.first_chunk_mut::<3>()?.copy_from_slice(day);
        read(text)
    })
}

/// As in the grammar: `Sun`, `Nov`, `GMT`.
fn capitalise(text: &mut [u8]) {
    let mut inside = false;
    for byte in text.iter_mut() {
        if inside {
            byte.make_ascii_lowercase();
        } else {
            byte.make_ascii_uppercase();
        }
        inside = byte.is_ascii_alphabetic();
    }
    if let Some((_, zone)) = text.split_last_chunk_mut().filter(|(_, zone)| **zone == *b" Gmt") {
        *zone = *b" GMT";
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(value: &str) -> Option<u64> {
        parse(value.as_bytes()).map(|date| date.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn three_forms_in_any_case() {
        for value in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun Nov 06 08:49:37 1994",
            " Sun, 06 Nov 1994 08:49:37 GMT\t",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Tue Nov  6 08:49:37 1994",
        ] {
            for value in [value.to_owned(), value.to_lowercase(), value.to_uppercase()] {
                assert_eq!(seconds(&value), Some(784_111_777), "{value}");
            }
        }
        assert_eq!(seconds("Wednesday, 09-Nov-94 08:49:37 GMT"), Some(784_370_977));
        assert_eq!(seconds("Thursday, 18-Aug-50 02:01:18 GMT"), Some(2_544_400_878));
    }

    #[test]
    fn no_clock_is_too_wrong_to_write() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(write(at(784_111_777)).unwrap(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(write(at(253_402_300_799)).unwrap(), "Fri, 31 Dec 9999 23:59:59 GMT");
        for wrong in [at(253_402_300_800), UNIX_EPOCH - Duration::from_secs(1)] {
            assert_eq!(write(wrong), None);
        }
    }

    #[test]
    fn a_leap_second_is_no_later_than_it_was() {
        for value in ["Sat, 31 Dec 2016 23:59:60 GMT", "Saturday, 31-Dec-16 23:59:60 GMT", "Sat Dec 31 23:59:60 2016"] {
            assert_eq!(seconds(value), seconds("Sat, 31 Dec 2016 23:59:59 GMT"), "{value}");
            assert!(seconds(value).is_some());
        }
        assert_eq!(seconds("Sat, 31 Dec 2016 23:58:60 GMT"), None);
        assert_eq!(seconds("Sat, 31 Dec 2016 23:59:61 GMT"), None);
    }

    #[test]
    fn everything_else_is_no_date() {
        for value in [
            "",
            "0",
            "-1",
            ":",
            "::::::::",
            "784111777",
            "now",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sol, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 08:49:37 GMT+1",
            "Sun, 06 Nov 1994 08:49:37GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun,06 Nov 1994 08:49:37 GMT",
            "06 Nov 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun,  6 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov 1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 08:49:37.5 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Wed, 31 Nov 1994 08:49:37 GMT",
            "Wed, 31 Dec 1969 23:59:59 GMT",
            "Sunday, 06-Nov-94X08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun Nov  6 08:49:37 1994 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(seconds(value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn a_date_is_read_as_it_was_written(at in 0u64..253_402_300_800) {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at));
            prop_assert_eq!(seconds(&text), Some(at));
            prop_assert_eq!(seconds(&text.to_ascii_uppercase()), Some(at));
        }

        #[test]
        fn any_change_of_one_byte_is_noticed(at in 0u64..253_402_300_800, place in 0usize..29, byte: u8) {
            let date = UNIX_EPOCH + Duration::from_secs(at);
            let text = httpdate::fmt_http_date(date);
            let mut changed = text.clone().into_bytes();
            changed[place] = byte;
            let same = changed.eq_ignore_ascii_case(text.as_bytes());
            prop_assert_eq!(parse(&changed) == Some(date), same);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(value: Vec<u8>, text in "[A-Za-z]{3,9},? [0-9A-Za-z :-]{10,24}") {
            parse(&value);
            parse(text.as_bytes());
        }
    }
}
