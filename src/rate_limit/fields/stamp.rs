//! The fields of one response, from the decision to the response.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::digits;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STANDING: HeaderName = HeaderName::from_static("ratelimit");

/// The names of the fields with one number each.
#[derive(Debug)]
pub(crate) struct Names {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
}

pub(crate) static DRAFT_6: Names = Names {
    limit: HeaderName::from_static("ratelimit-limit"),
    remaining: HeaderName::from_static("ratelimit-remaining"),
    reset: HeaderName::from_static("ratelimit-reset"),
};

pub(crate) static LEGACY: Names = Names {
    limit: HeaderName::from_static("x-ratelimit-limit"),
    remaining: HeaderName::from_static("x-ratelimit-remaining"),
    reset: HeaderName::from_static("x-ratelimit-reset"),
};

/// It moves with a request's future, so it is small.
#[derive(Debug)]
pub(crate) enum Stamp {
    None,
    Texts { policy: HeaderValue, standing: HeaderValue },
    Numbers { policy: Option<HeaderValue>, names: &'static Names, limit: u64, remaining: u64, reset: u64 },
}

impl Stamp {
    /// Appends the fields, beside what the inner service may have said of limits of its own. Where no field fits into
    /// the response any more, it goes without.
    pub(crate) fn append(self, headers: &mut HeaderMap) {
        match self {
            Self::None => {}
            Self::Texts { policy, standing } => {
                add(headers, POLICY, policy);
                add(headers, STANDING, standing);
            }
            Self::Numbers { policy, names, limit, remaining, reset } => {
                if let Some(policy) = policy {
                    add(headers, POLICY, policy);
                }
                for (name, number) in [(&names.limit, limit), (&names.remaining, remaining), (&names.reset, reset)] {
                    add(headers, name.clone(), digits::value(number));
                }
            }
        }
    }
}

fn add(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let _ = headers.try_append(name, value);
}
