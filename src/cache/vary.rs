//! `Vary`: which request fields select among the responses of one URL (RFC 9111 §4.1).

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{RANGE, VARY};
use http::{HeaderMap, HeaderName};

use super::intake::Intake;
use super::key::Key;

/// More fields than this select too finely to be worth a place.
const MAX_NAMES: usize = 16;

/// The fields that a URL's responses vary by, sorted and unique.
pub(super) type Names = Arc<[HeaderName]>;

/// What is stored under a URL whose responses vary: with it and a request's fields, the key of one response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VarySpec {
    pub(super) names: Names,
    /// Part of every variant's key: once the spec is removed, and made anew, the old variants are out of reach.
    pub(super) generation: u64,
    /// Until when it is worth keeping: as long as the last of the responses, at least.
    pub(super) until: SystemTime,
    /// The keys of the responses that are stored, the oldest first.
    pub(super) variants: Vec<Key>,
    /// When this process got it, by its clock of purges: for a memory in front of a shared store. Not stored.
    pub(super) stamp: u64,
}

/// What a lookup, or another request's response, has told of a URL's responses.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) spec: Arc<VarySpec>,
    /// [`Flights::voided`](super::flight::Flights::voided) of the URL, before the spec was read: once that has changed,
    /// the spec is another generation's, and what is stored with it would bring its variants back.
    pub(super) voided: u64,
}

impl VarySpec {
    /// Of this generation, or of one of its own.
    pub(super) fn new(names: Names, generation: Option<u64>, until: SystemTime) -> Self {
        let generation = generation.unwrap_or_else(|| RandomState::new().hash_one(SystemTime::now()));
        Self { names, generation, until, variants: Vec::new(), stamp: 0 }
    }

    /// The key of the response to a request with these fields. `None`: too long for a key.
    pub(super) fn key(&self, intake: &Intake, primary: &Key, request: &HeaderMap) -> Option<Key> {
        primary.extend(|key| {
            key.push(&self.generation.to_be_bytes())?;
            self.names.iter().try_for_each(|name| {
                key.push(name.as_str().as_bytes())?;
                key.push_value(intake.select(request, name).as_deref())
            })
        })
    }
}

/// The fields that `Vary` names.
///
/// # Errors
/// `Vary: *`, a name that is none, or too many names: no later request can be known to match.
pub(super) fn names(response: &HeaderMap) -> Result<Option<Names>, Unmatchable> {
    let mut names = Vec::new();
    for line in response.get_all(VARY) {
        for member in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            match member {
                b"" => {}
                b"*" => return Err(Unmatchable),
                name => names.push(HeaderName::from_bytes(name).map_err(|_| Unmatchable)?),
            }
        }
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    match names.len() {
        0 => Ok(None),
        1..=MAX_NAMES => Ok(Some(names.into())),
        _ => Err(Unmatchable),
    }
}

/// By the requested range as well: a part answers only those who ask for the very same one.
pub(super) fn with_range(names: Option<Names>) -> Option<Names> {
    let mut names = names.map_or(Vec::new(), |names| names.to_vec());
    names.push(RANGE);
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    Some(names.into())
}

/// No later request can be known to match the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unmatchable;

#[cfg(test)]
mod tests {
    use http::Extensions;

    use super::*;

    fn vary(lines: &[&str]) -> Result<Option<Vec<String>>, Unmatchable> {
        let headers = lines.iter().map(|line| (VARY, line.parse().unwrap())).collect();
        names(&headers).map(|names| names.map(|names| names.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn all_lines_sorted_and_unique() {
        assert_eq!(vary(&[]), Ok(None));
        assert_eq!(vary(&["", " , "]), Ok(None));
        assert_eq!(vary(&["B, a", "b"]), Ok(Some(vec!["a".into(), "b".into()])));
        for refused in ["*", "a, *", "a b", "\"a\""] {
            assert_eq!(vary(&[refused]), Err(Unmatchable), "{refused}");
        }
        let many = (0..17).map(|n| format!("x{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(vary(&[&many]), Err(Unmatchable));
    }

    fn request(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers: HeaderMap = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn variants_differ_exactly_where_the_combined_fields_do() {
        let host = request(&[("host", "a")]);
        let primary = Key::primary(&Intake::default(), &"/".parse().unwrap(), &host, &Extensions::new()).unwrap();
        let spec = VarySpec::new(
            [HeaderName::from_static("a"), HeaderName::from_static("b")].into(),
            None,
            SystemTime::UNIX_EPOCH,
        );
        let key = |lines: &[(&'static str, &str)]| spec.key(&Intake::default(), &primary, &request(lines)).unwrap();
        assert_eq!(key(&[("a", "1"), ("a", "2")]), key(&[("a", "1, 2")]));
        assert_eq!(key(&[("a", "1")]), key(&[("a", "1"), ("c", "9")]));
        assert_ne!(key(&[]), key(&[("a", "")]));
        assert_ne!(key(&[("a", "1")]), key(&[("b", "1")]));
        assert_ne!(key(&[]), primary);
        let renewed = VarySpec { generation: spec.generation + 1, ..spec.clone() };
        assert_ne!(
            renewed.key(&Intake::default(), &primary, &request(&[])),
            spec.key(&Intake::default(), &primary, &request(&[]))
        );
        assert_eq!(spec.key(&Intake::default(), &primary, &request(&[("a", &"x".repeat(5000))])), None);
    }
}
