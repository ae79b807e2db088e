//! A wall clock that moves with tokio's paused one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: SystemTime,
    start: Instant,
}

impl Clock {
    /// From the real now, 137 ms into its second: no case depends on when it is run.
    pub fn start() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Self { base: UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(137), start: Instant::now() }
    }

    pub fn now(&self) -> SystemTime {
        self.base + self.start.elapsed()
    }

    pub fn millis(&self) -> u128 {
        self.now().duration_since(UNIX_EPOCH).unwrap().as_millis()
    }
}

/// A date some seconds from `now`, as an IMF-fixdate.
pub fn imf(now: SystemTime, offset: i64) -> String {
    let distance = Duration::from_secs(offset.unsigned_abs());
    httpdate::fmt_http_date(if offset < 0 { now - distance } else { now + distance })
}

/// An IMF-fixdate as RFC 850 writes it.
pub fn rfc850(imf: &str) -> String {
    let [day, date, month, year, time, zone] = parts(imf);
    let day = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        .into_iter()
        .find(|name| name.starts_with(day))
        .unwrap();
    format!("{day}, {date}-{month}-{} {time} {zone}", &year[2..])
}

/// An IMF-fixdate as asctime writes it.
pub fn asctime(imf: &str) -> String {
    let [day, date, month, year, time, _] = parts(imf);
    format!("{day} {month} {:>2} {time} {year}", date.trim_start_matches('0'))
}

fn parts(imf: &str) -> [&str; 6] {
    let parts: Vec<_> = imf.split([' ', ',']).filter(|part| !part.is_empty()).collect();
    parts.try_into().unwrap()
}

#[test]
fn dates_in_three_forms() {
    let imf = imf(UNIX_EPOCH + Duration::from_secs(784_111_777), 0);
    assert_eq!(imf, "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(rfc850(&imf), "Sunday, 06-Nov-94 08:49:37 GMT");
    assert_eq!(asctime(&imf), "Sun Nov  6 08:49:37 1994");
    assert_eq!(
        [httpdate::parse_http_date(&rfc850(&imf)), httpdate::parse_http_date(&asctime(&imf))].map(Result::unwrap),
        [httpdate::parse_http_date(&imf).unwrap(); 2]
    );
}
