//! How a response without content renews a stored one (RFC 9111 §3.2, §4.3.4, §4.3.5), and what asks for it.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::date;
use super::entry::Entry;

/// More entity tags than this are not worth their bytes.
const MAX_TAGS: usize = 16;

/// The stored responses that a validation may find to hold.
#[derive(Clone, Default)]
pub(super) struct Held {
    /// What is stored for the very request.
    pub(super) own: Option<Arc<Entry>>,
    /// What is stored for requests with other fields, where it has an entity tag.
    pub(super) others: Vec<Arc<Entry>>,
}

impl Held {
    /// What is stored for the very request is a part, of a whole that may be large.
    pub(super) fn is_part(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.head.status == StatusCode::PARTIAL_CONTENT)
    }

    /// Puts the conditions into a request, in place of its client's own and, unless a part is to be renewed, of its
    /// `Range`: the client is answered from what comes. `false`: there is nothing to ask for.
    pub(super) fn ask(&self, request: &mut HeaderMap) -> bool {
        for name in [IF_RANGE, IF_NONE_MATCH, IF_MODIFIED_SINCE] {
            request.remove(name);
        }
        if !self.is_part() {
            request.remove(RANGE);
        }
        // A condition is about a success (RFC 9110 §13.2.1): a 304 would not mean that a stored 404 still holds.
        let own = self.own.iter().filter(|own| own.head.status.is_success());
        let tags = own.clone().chain(&self.others).filter_map(|entry| entry.head.headers.get(ETAG)).take(MAX_TAGS);
        let tags = tags.map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
        let modified = own.clone().find_map(|own| own.head.headers.get(LAST_MODIFIED));
        let mut asked = false;
        if let Some(tags) = HeaderValue::from_bytes(&tags).ok().filter(|tags| !tags.is_empty()) {
            request.insert(IF_NONE_MATCH, tags);
            asked = true;
        }
        if let Some(modified) = modified {
            request.insert(IF_MODIFIED_SINCE, modified.clone());
            asked = true;
        }
        asked
    }

    /// The stored response that a 304 speaks of: the one with its entity tag; where it has none, or none of ours, the
    /// one that was asked for first.
    pub(super) fn selected_by(&self, response: &HeaderMap) -> Option<&Arc<Entry>> {
        let tag = response.get(ETAG).map(opaque);
        let mut entries = self.own.iter().chain(&self.others);
        let by_tag = entries.find(|entry| tag.is_some() && entry.head.headers.get(ETAG).map(opaque) == tag);
        by_tag.or(self.own.as_ref()).or(self.others.first())
    }
}

fn opaque(tag: &HeaderValue) -> &[u8] {
    let tag = tag.as_bytes();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The stored fields (`merged`), each replaced by the lines of the same name in `update`. Fields that describe the stored
/// bytes stay, the entity tag among them: servers that compress weaken it for the 200 only, and a strong one would vouch
/// for bytes it was never given for. A `Date` is that of the update, or of its arrival.
pub(super) fn freshened(mut merged: HeaderMap, update: &HeaderMap, received: SystemTime) -> HeaderMap {
    const OF_THE_CONTENT: [HeaderName; 4] =
        [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, HeaderName::from_static("content-digest")];
    let has_tag = merged.contains_key(ETAG);
    let stays = |name: &HeaderName| OF_THE_CONTENT.contains(name) || *name == ETAG && has_tag;
    for name in update.keys().filter(|name| !stays(name)) {
        merged.remove(name);
        for line in update.get_all(name) {
            merged.append(name.clone(), line.clone());
        }
    }
    if !update.contains_key(DATE)
        && let Some(date) = date::write(received)
    {
        merged.insert(DATE, date);
    }
    merged
}

/// What the response to a HEAD says of a stored response (RFC 9111 §4.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    /// They are one.
    Same,
    /// There is another in its place.
    Other,
    /// Nothing.
    Unknown,
}

pub(super) fn compare(head: &HeaderMap, stored: &Entry) -> Likeness {
    let ours = &stored.head.headers;
    let same = |name: &HeaderName| head.get(name).is_none() || head.get(name) == ours.get(name);
    let length = head.get(CONTENT_LENGTH).map(HeaderValue::as_bytes);
    let told = head.contains_key(ETAG) || head.contains_key(LAST_MODIFIED);
    let same_length = length.is_none_or(|length| length == stored.body.len().to_string().as_bytes());
    match same(&ETAG) && same(&LAST_MODIFIED) && same_length {
        true if told => Likeness::Same,
        true => Likeness::Unknown,
        false => Likeness::Other,
    }
}
