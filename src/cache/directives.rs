//! `Cache-Control` and its kin, read so that doubt never makes a response more cacheable.

use std::borrow::Cow;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName};

use super::structured::{Dictionary, Item};
use super::tokens::{Directive, Directives, Malformed};

pub(super) use super::request_control::RequestControl;

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

/// A directive that may be about some fields only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Fields {
    #[default]
    Absent,
    /// About the whole response, or about fields that cannot be told.
    All,
    Named(Vec<HeaderName>),
}

impl Fields {
    fn merge(&mut self, list: Option<&[u8]>) {
        *self = match (std::mem::take(self), list.and_then(field_names)) {
            (Self::All, _) | (_, None) => Self::All,
            (Self::Absent, Some(names)) => Self::Named(names),
            (Self::Named(mut known), Some(names)) => {
                known.extend(names);
                Self::Named(known)
            }
        };
    }
}

/// `None`: one of them is no name, or there is none at all.
fn field_names(list: &[u8]) -> Option<Vec<HeaderName>> {
    let members = list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty());
    let names: Vec<_> = members.map(|member| HeaderName::from_bytes(member).ok()).collect::<Option<_>>()?;
    (!names.is_empty()).then_some(names)
}

/// What the response says about storing and reusing it (RFC 9111 §5.2.2, RFC 5861, RFC 8246), all field lines together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CacheControl {
    pub(super) no_store: bool,
    pub(super) no_cache: Fields,
    pub(super) private: Fields,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) proxy_revalidate: bool,
    pub(super) must_understand: bool,
    pub(super) immutable: bool,
    pub(super) max_age: Seconds,
    pub(super) s_maxage: Seconds,
    pub(super) stale_while_revalidate: Seconds,
    pub(super) stale_if_error: Seconds,
    /// Some part of the field is not what the grammar or the directive allows: nothing in it can be relied on.
    pub(super) malformed: bool,
}

/// Where a directive goes.
enum Slot<'a> {
    Flag(&'a mut bool),
    Seconds(&'a mut Seconds),
    Fields(&'a mut Fields),
}

/// The directives that count.
const DIRECTIVES: [&str; 12] = [
    "no-store",
    "no-cache",
    "private",
    "public",
    "must-revalidate",
    "proxy-revalidate",
    "must-understand",
    "immutable",
    "max-age",
    "s-maxage",
    "stale-while-revalidate",
    "stale-if-error",
];

impl CacheControl {
    /// `Cache-Control`.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        for part in headers.get_all(CACHE_CONTROL).iter().flat_map(|line| Directives(line.as_bytes())) {
            match part {
                Ok(directive) => control.apply(&directive),
                Err(Malformed) => control.malformed = true,
            }
        }
        control
    }

    /// The first of `names` that is present, valid and not empty (RFC 9213 §2.2). `None`: go by `Cache-Control` and
    /// `Expires`.
    pub(super) fn targeted(headers: &HeaderMap, names: &[HeaderName]) -> Option<Self> {
        names.iter().find_map(|name| {
            let field = joined(headers, name);
            let members = Dictionary::parse(&field).filter(|members| !members.is_empty())?;
            let mut control = Self::default();
            for name in DIRECTIVES {
                if let Some(item) = members.get(name) {
                    control.member(name, item);
                }
            }
            Some(control)
        })
    }

    fn apply(&mut self, Directive { name, value }: &Directive<'_>) {
        let known = DIRECTIVES.iter().find(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        match (known.and_then(|known| self.slot(known)), value) {
            (None, _) => {}
            (Some(Slot::Seconds(seconds)), value) => seconds.merge(*value),
            (Some(Slot::Fields(fields)), value) => fields.merge(*value),
            (Some(Slot::Flag(flag)), None) => *flag = true,
            (Some(Slot::Flag(_)), Some(_)) => self.malformed = true,
        }
    }

    /// A value of another type than the directive has is not to be used (RFC 9213 §2.1). The field still decides, as
    /// malformed: `no-store=true` must not end in what `Cache-Control` says to everybody else.
    fn member(&mut self, name: &str, item: &Item<'_>) {
        match (self.slot(name), item) {
            (None, _) => {}
            (Some(Slot::Flag(flag)), Item::Boolean(true)) => *flag = true,
            (Some(Slot::Seconds(seconds)), Item::Integer(value)) => {
                *seconds = u64::try_from(*value)
                    .map_or(Seconds::Invalid, |value| Seconds::Valid(value.min(MAX_DELTA_SECONDS)));
            }
            (Some(Slot::Fields(fields)), Item::Boolean(true)) => fields.merge(None),
            (Some(Slot::Fields(fields)), Item::String(list)) => fields.merge(Some(list)),
            (Some(_), _) => self.malformed = true,
        }
    }

    fn slot(&mut self, name: &str) -> Option<Slot<'_>> {
        Some(match name {
            "no-store" => Slot::Flag(&mut self.no_store),
            "no-cache" => Slot::Fields(&mut self.no_cache),
            "private" => Slot::Fields(&mut self.private),
            "public" => Slot::Flag(&mut self.public),
            "must-revalidate" => Slot::Flag(&mut self.must_revalidate),
            "proxy-revalidate" => Slot::Flag(&mut self.proxy_revalidate),
            "must-understand" => Slot::Flag(&mut self.must_understand),
            "immutable" => Slot::Flag(&mut self.immutable),
            "max-age" => Slot::Seconds(&mut self.max_age),
            "s-maxage" => Slot::Seconds(&mut self.s_maxage),
            "stale-while-revalidate" => Slot::Seconds(&mut self.stale_while_revalidate),
            "stale-if-error" => Slot::Seconds(&mut self.stale_if_error),
            _ => return None,
        })
    }
}

/// All lines as one (RFC 9651 §4.2).
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Cow<'a, [u8]> {
    let mut lines = headers.get_all(name).iter();
    let mut field = Cow::Borrowed(lines.next().map_or(b"".as_slice(), |line| line.as_bytes()));
    for line in lines {
        field.to_mut().extend_from_slice(b", ");
        field.to_mut().extend_from_slice(line.as_bytes());
    }
    field
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

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");

    fn parse(lines: &[&str]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().unwrap());
        }
        CacheControl::of(&headers)
    }

    fn target(lines: &[&str]) -> Option<CacheControl> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CDN, line.parse().unwrap());
        }
        CacheControl::targeted(&headers, &[CDN])
    }

    fn named(names: &[&'static str]) -> Fields {
        Fields::Named(names.iter().map(|name| HeaderName::from_static(name)).collect())
    }

    #[test]
    fn names_are_read_in_any_case_and_on_every_line() {
        let control = parse(&["Private, MAX-AGE=60", "NO-STORE", "x=\"a, no-cache\", S-MaxAge=\"10\""]);
        let expected = CacheControl {
            no_store: true,
            private: Fields::All,
            max_age: Seconds::Valid(60),
            s_maxage: Seconds::Valid(10),
            ..CacheControl::default()
        };
        assert_eq!(control, expected);
    }

    #[test]
    fn every_directive_has_its_place() {
        let expected = CacheControl {
            no_store: true,
            no_cache: Fields::All,
            private: Fields::All,
            public: true,
            must_revalidate: true,
            proxy_revalidate: true,
            must_understand: true,
            immutable: true,
            max_age: Seconds::Valid(1),
            s_maxage: Seconds::Valid(2),
            stale_while_revalidate: Seconds::Valid(3),
            stale_if_error: Seconds::Valid(4),
            malformed: false,
        };
        let all = "no-store, no-cache, private, public, must-revalidate, proxy-revalidate, must-understand, immutable, \
                   max-age=1, s-maxage=2, stale-while-revalidate=3, stale-if-error=4";
        assert_eq!(parse(&[all]), expected);
        assert_eq!(target(&[all]), Some(expected));
    }

    #[test]
    fn fields_are_named_or_all() {
        for (value, expected) in [
            ("private", Fields::All),
            ("private=\"Set-Cookie\"", named(&["set-cookie"])),
            ("private=x", named(&["x"])),
            ("private=\"a , ,b,\"", named(&["a", "b"])),
            ("private=\"a\", private=\"b\"", named(&["a", "b"])),
            ("private=\"a\", private", Fields::All),
            ("private, private=\"a\"", Fields::All),
            ("private=\"\"", Fields::All),
            ("private=\" , \"", Fields::All),
            ("private=\"a, b c\"", Fields::All),
            ("private=\"a, max-age=5\"", Fields::All),
            ("private=\"\\a\"", Fields::All),
            ("xprivate=\"a\"", Fields::Absent),
        ] {
            let control = parse(&[value]);
            assert_eq!(
                (&control.private, control.max_age, control.malformed),
                (&expected, Seconds::Absent, false),
                "{value}"
            );
            assert_eq!(parse(&[&value.replace("private", "no-cache")]).no_cache, expected, "{value}");
        }
    }

    #[test]
    fn a_flag_with_an_argument_is_not_relied_on() {
        for flag in ["no-store", "public", "must-revalidate", "proxy-revalidate", "must-understand", "immutable"] {
            for argument in ["=true", "=\"\"", "=0"] {
                assert!(parse(&[&format!("max-age=60, {flag}{argument}")]).malformed, "{flag}{argument}");
            }
        }
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

    #[test]
    fn targeted_values() {
        let with_age = |max_age| Some(CacheControl { max_age, ..CacheControl::default() });
        let malformed = Some(CacheControl { malformed: true, ..CacheControl::default() });
        for (lines, expected) in [
            (&["max-age=60"][..], with_age(Seconds::Valid(60))),
            (&["max-age=60;p=1"], with_age(Seconds::Valid(60))),
            (&["max-age=60, x=(1 2), max-age=61"], with_age(Seconds::Valid(61))),
            (&["max-age=60", "max-age=61"], with_age(Seconds::Valid(61))),
            (&["max-age=99999999999"], with_age(Seconds::Valid(MAX_DELTA_SECONDS))),
            (&["max-age=-1"], with_age(Seconds::Invalid)),
            (&["x, y=\"no-store\""], Some(CacheControl::default())),
            (&["max-age=\"10000\""], malformed.clone()),
            (&["max-age=60, max-age=1.5"], malformed.clone()),
            (&["max-age"], malformed.clone()),
            (&["max-age=x"], malformed.clone()),
            (&["no-store=?0"], malformed.clone()),
            (&["no-store=true"], malformed.clone()),
            (&["private=x"], malformed.clone()),
            (&["no-cache=(\"x\")"], malformed.clone()),
            (&["no-cache=?0"], malformed),
            (&[], None),
            (&[""], None),
            (&["", ""], None),
            (&["max-age=60", ""], None),
            (&["MaX-aGe=60"], None),
            (&["max-age =60"], None),
            (&["max-age=60, &&&&&"], None),
            (&["no-store; , x"], None),
            (&["max-age=9999999999999999"], None),
        ] {
            assert_eq!(target(lines), expected, "{lines:?}");
        }
        assert_eq!(target(&["private=\"a, b\""]).unwrap().private, named(&["a", "b"]));
        assert_eq!(target(&["no-cache=\"\", private"]).unwrap().no_cache, Fields::All);
        assert_eq!(target(&["private=\"a\", private=\"b\""]).unwrap().private, named(&["b"]));
    }

    #[test]
    fn the_first_usable_target_decides() {
        let own = HeaderName::from_static("own-cache-control");
        let decide = |first: &str, second: &str| {
            let lines = [(own.clone(), first.parse().unwrap()), (CDN, second.parse().unwrap())];
            CacheControl::targeted(&HeaderMap::from_iter(lines), &[own.clone(), CDN]).map(|control| control.max_age)
        };
        assert_eq!(decide("max-age=1", "max-age=2"), Some(Seconds::Valid(1)));
        assert_eq!(decide("", "max-age=2"), Some(Seconds::Valid(2)));
        assert_eq!(decide("max-age=1,", "max-age=2"), Some(Seconds::Valid(2)));
        assert_eq!(decide("x", "max-age=2"), Some(Seconds::Absent));
        assert_eq!(decide("A", "B"), None);
        assert_eq!(CacheControl::targeted(&HeaderMap::new(), &[own, CDN]), None);
    }

    proptest! {
        /// What both grammars allow means the same in both.
        #[test]
        fn a_targeted_field_means_what_cache_control_means(
            members in proptest::collection::hash_map(proptest::sample::select(&DIRECTIVES[..]), 0u32.., 1..6),
        ) {
            let write = |(name, value): (&&str, &u32)| match CacheControl::default().slot(name) {
                Some(Slot::Seconds(_)) => format!("{name}={value}"),
                Some(Slot::Fields(_)) if value % 2 == 0 => format!("{name}=\"a, x-{value}\""),
                _ => (*name).to_owned(),
            };
            let line = members.iter().map(write).collect::<Vec<_>>().join(", ");
            prop_assert!(!parse(&[&line]).malformed);
            prop_assert_eq!(target(&[&line]), Some(parse(&[&line])));
        }

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
                let headers = HeaderMap::from_iter([CACHE_CONTROL, CDN].map(|name| (name, value.clone())));
                CacheControl::of(&headers);
                CacheControl::targeted(&headers, &[CDN]);
            }
        }
    }
}
