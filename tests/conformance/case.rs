//! A case as data: the format of the public suite, and what ours adds to it (the page of `main.rs` explains both).

use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    pub id: String,
    #[serde(rename = "name")]
    _name: IgnoredAny,
    #[serde(default, rename = "description")]
    _description: Option<IgnoredAny>,
    #[serde(default, rename = "spec_anchors")]
    _spec_anchors: Option<IgnoredAny>,
    pub tests: Vec<Case>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub id: String,
    pub name: String,
    #[serde(default)]
    pub kind: Kind,
    #[serde(default)]
    pub depends_on: Vec<String>,
    pub requests: Vec<Step>,
    #[serde(default)]
    pub layer: Options,
    #[serde(default, rename = "browser_only")]
    _browser_only: Option<IgnoredAny>,
    #[serde(default, rename = "browser_skip")]
    _browser_skip: Option<IgnoredAny>,
    #[serde(default, rename = "cdn_only")]
    _cdn_only: Option<IgnoredAny>,
    #[serde(default, rename = "spec_anchors")]
    _spec_anchors: Option<IgnoredAny>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Required,
    Optimal,
    Check,
}

/// How the layer of this case is built; times in seconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub stale_if_error: Option<u64>,
    pub stale_while_revalidate: Option<u64>,
    pub fetch_timeout: Option<u64>,
    pub ttl: Option<u64>,
    pub negative_ttl: Option<u64>,
    pub max_object_bytes: Option<usize>,
    pub request_directives: Option<bool>,
    pub stale_beside_s_maxage: Option<bool>,
    pub targeted_fields: Option<Vec<String>>,
}

/// Both sides of one exchange: element n of `requests`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    pub request_method: Option<String>,
    pub request_headers: Vec<Field>,
    pub request_body: Option<String>,
    pub query_arg: Option<String>,
    pub filename: Option<String>,
    pub pause_after: Pause,
    pub magic_ims: bool,
    /// Ours: another `Host`.
    pub host: Option<String>,
    /// Ours: the next element begins before this one ends.
    pub overlap: bool,

    pub response_status: Option<(u16, IgnoredAny)>,
    pub response_headers: Vec<Field>,
    pub response_body: Option<String>,
    pub response_pause: f64,
    pub disconnect: bool,
    pub interim_responses: Vec<IgnoredAny>,
    pub rfc850date: Vec<String>,
    pub magic_locations: bool,
    /// Ours: names of fields whose dates are written as asctime does.
    pub asctimedate: Vec<String>,
    /// Ours: without `Content-Length`, in pieces of four bytes.
    pub response_chunked: bool,
    /// Ours: the body ends in an error.
    pub response_truncated: bool,

    pub expected_type: Option<Expected>,
    #[serde(deserialize_with = "present")]
    pub expected_status: Option<Option<u16>>,
    pub expected_method: Option<String>,
    pub expected_request_headers: Vec<Want>,
    pub expected_request_headers_missing: Vec<Want>,
    pub expected_response_headers: Vec<Want>,
    pub expected_response_headers_missing: Vec<Want>,
    pub expected_response_text: Option<String>,
    pub check_body: Option<bool>,
    pub expected_interim_responses: Vec<IgnoredAny>,
    pub setup: bool,
    pub setup_tests: Vec<String>,
    /// Ours: the element whose answer of the origin the client has.
    pub expected_answer_of: Option<usize>,
    /// Ours: requests that the origin has seen when this element and what it began in the background are done.
    pub expected_origin_requests: Option<usize>,
    /// Ours: what the last member of `Cache-Status` says, and names that it does not.
    pub expected_cache_status: Vec<String>,
    pub expected_cache_status_missing: Vec<String>,

    #[serde(rename = "redirect")]
    _redirect: Option<IgnoredAny>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    Cached,
    NotCached,
    EtagValidated,
    LmValidated,
}

impl Expected {
    pub fn is_validated(self) -> bool {
        matches!(self, Self::EtagValidated | Self::LmValidated)
    }
}

/// `true` is 3 seconds; ours: a number of seconds.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum Pause {
    Standard(bool),
    Seconds(f64),
}

impl Default for Pause {
    fn default() -> Self {
        Self::Standard(false)
    }
}

impl Pause {
    pub fn duration(self) -> Duration {
        match self {
            Self::Standard(true) => Duration::from_secs(3),
            Self::Standard(false) => Duration::ZERO,
            Self::Seconds(seconds) => Duration::from_secs_f64(seconds),
        }
    }
}

/// A field line to send.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "RawField")]
pub struct Field {
    pub name: String,
    pub value: Literal,
    /// The client must see it.
    pub checked: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Literal {
    Text(String),
    /// Seconds from the origin's now.
    Offset(i64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawField {
    Plain(String, Literal),
    Marked(String, Literal, bool),
}

impl From<RawField> for Field {
    fn from(raw: RawField) -> Self {
        let (name, value, checked) = match raw {
            RawField::Plain(name, value) => (name, value, true),
            RawField::Marked(name, value, checked) => (name, value, checked),
        };
        Self { name: name.to_ascii_lowercase(), value, checked }
    }
}

/// What a field is expected to be (or not to be).
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Want {
    Present(String),
    /// An offset is counted from the `Server-Now` of the response.
    Value(String, Literal),
    Same(String, Equals, String),
    Above(String, Greater, i64),
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub enum Equals {
    #[serde(rename = "=")]
    Equals,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub enum Greater {
    #[serde(rename = ">")]
    Greater,
}

/// `null` is not the same as nothing.
fn present<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Option<u16>>, D::Error> {
    Option::deserialize(input).map(Some)
}

/// Reads suites, and says of which file it cannot.
pub fn parse(file: &str, text: &str) -> Vec<Suite> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"))
}
