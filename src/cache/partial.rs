//! A part of a stored response as it goes out (RFC 9110 §15.3.7, §15.5.17).

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, EXPIRES, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::range::Selection;

/// Digests of what the message carries (RFC 9530 §2): not those of a part of it.
const DIGESTS: [HeaderName; 2] = [HeaderName::from_static("content-digest"), HeaderName::from_static("content-md5")];

/// Fields that describe a representation, or say how long it may be kept.
const REPRESENTATION: [HeaderName; 10] = [
    CONTENT_DISPOSITION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LOCATION,
    CONTENT_TYPE,
    ETAG,
    EXPIRES,
    LAST_MODIFIED,
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("surrogate-control"),
];

/// Turns the whole of a stored 200 into what goes out: the same, a 206 of one part or of several, or a 416.
pub(super) fn apply(selection: Selection, response: Response<Bytes>) -> Response<Bytes> {
    let length = response.body().len() as u64;
    match selection {
        Selection::Whole => response,
        Selection::Unsatisfiable => unsatisfiable(response),
        Selection::One(part) => {
            let Some(body) = slice(response.body(), &part) else { return response };
            let (mut head, _) = response.into_parts();
            head_of_part(&part, length, &mut head.status, &mut head.headers);
            Response::from_parts(head, body)
        }
        Selection::Many(parts) => multipart(&parts, response),
    }
}

/// Makes status and fields of a stored 200 of `length` bytes those of a 206 with one part, which is not empty.
pub(super) fn head_of_part(part: &Range<u64>, length: u64, status: &mut StatusCode, headers: &mut HeaderMap) {
    *status = StatusCode::PARTIAL_CONTENT;
    DIGESTS.iter().for_each(|name| drop(headers.remove(name)));
    set(headers, CONTENT_RANGE, content_range(part, length));
    headers.insert(CONTENT_LENGTH, part.end.saturating_sub(part.start).into());
}

fn content_range(part: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", part.start, part.end.saturating_sub(1))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

fn slice(body: &Bytes, part: &Range<u64>) -> Option<Bytes> {
    let (start, end) = (usize::try_from(part.start).ok()?, usize::try_from(part.end).ok()?);
    body.get(start..end).map(|part| body.slice_ref(part))
}

/// §15.5.17. It is no representation, and nobody is to keep it as one.
fn unsatisfiable(response: Response<Bytes>) -> Response<Bytes> {
    let (mut head, body) = response.into_parts();
    head.status = StatusCode::RANGE_NOT_SATISFIABLE;
    let targeted = head.headers.keys().filter(|name| name.as_str().ends_with("cache-control")).cloned();
    for name in targeted.chain(DIGESTS).chain(REPRESENTATION).collect::<Vec<_>>() {
        head.headers.remove(name);
    }
    head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    set(&mut head.headers, CONTENT_RANGE, format!("bytes */{}", body.len()));
    head.headers.insert(CONTENT_LENGTH, 0.into());
    Response::from_parts(head, Bytes::new())
}

/// §14.6, §15.3.7.2: the type of the whole goes into each part, and there is no `Content-Range` outside of them.
fn multipart(parts: &[Range<u64>], response: Response<Bytes>) -> Response<Bytes> {
    // Random, so that no stored body can hold it.
    let [high, low] = [(); 2].map(|()| RandomState::new().hash_one(parts.len()));
    let boundary = format!("{high:016x}{low:016x}");
    let kind = response.headers().get(CONTENT_TYPE);
    let mut body = BytesMut::new();
    for part in parts {
        let Some(content) = slice(response.body(), part) else { return response };
        body.put_slice(format!("--{boundary}\r\n").as_bytes());
        if let Some(kind) = kind {
            body.put_slice(b"Content-Type: ");
            body.put_slice(kind.as_bytes());
            body.put_slice(b"\r\n");
        }
        let range = content_range(part, response.body().len() as u64);
        body.put_slice(format!("Content-Range: {range}\r\n\r\n").as_bytes());
        body.put_slice(&content);
        body.put_slice(b"\r\n");
    }
    body.put_slice(format!("--{boundary}--\r\n").as_bytes());
    let (mut head, _) = response.into_parts();
    head.status = StatusCode::PARTIAL_CONTENT;
    DIGESTS.iter().for_each(|name| drop(head.headers.remove(name)));
    head.headers.remove(CONTENT_RANGE);
    set(&mut head.headers, CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}"));
    head.headers.insert(CONTENT_LENGTH, body.len().into());
    Response::from_parts(head, body.freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::range::select;
    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn stored(body: &[u8]) -> Response<Bytes> {
        let mut response = Response::new(Bytes::copy_from_slice(body));
        *response.headers_mut() = map(&[
            ("content-type", "text/plain"),
            ("content-length", &body.len().to_string()),
            ("content-digest", "sha-256=:aGk=:"),
            ("etag", "\"a\""),
            ("cache-control", "max-age=60"),
            ("cdn-cache-control", "max-age=60"),
            ("vary", "accept"),
            ("x", "1"),
            ("x", "2"),
        ]);
        response
    }

    fn fields(response: &Response<Bytes>) -> Vec<String> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut lines: Vec<_> = response.headers().iter().map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_part_keeps_the_fields_of_the_whole() {
        let response = apply(Selection::One(2..5), stored(b"0123456789"));
        assert_eq!((response.status().as_u16(), &response.body()[..]), (206, &b"234"[..]));
        let expected = [
            "cache-control: max-age=60",
            "cdn-cache-control: max-age=60",
            "content-length: 3",
            "content-range: bytes 2-4/10",
            "content-type: text/plain",
            "etag: \"a\"",
            "vary: accept",
            "x: 1",
            "x: 2",
        ];
        assert_eq!(fields(&response), expected);
        let whole = apply(Selection::Whole, stored(b"0123456789"));
        assert_eq!((whole.status().as_u16(), fields(&whole)), (200, fields(&stored(b"0123456789"))));
    }

    #[test]
    fn nothing_of_the_representation_is_left_in_a_416() {
        let response = apply(Selection::Unsatisfiable, stored(b"0123456789"));
        assert_eq!((response.status().as_u16(), response.body().len()), (416, 0));
        let expected = [
            "cache-control: no-store",
            "content-length: 0",
            "content-range: bytes */10",
            "vary: accept",
            "x: 1",
            "x: 2",
        ];
        assert_eq!(fields(&response), expected);
    }

    #[test]
    fn parts_that_are_not_there_leave_the_response_as_it_is() {
        for selection in
            [Selection::One(5..11), Selection::One(u64::MAX - 1..u64::MAX), Selection::Many(vec![0..1, 9..11])]
        {
            let response = apply(selection, stored(b"0123456789"));
            assert_eq!((response.status().as_u16(), response.body().len()), (200, 10));
        }
    }

    /// Content and `Content-Range` of each part, as a client reads them.
    fn parts(response: &Response<Bytes>) -> Vec<(Vec<u8>, String)> {
        let kind = response.headers()["content-type"].to_str().unwrap();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        assert_eq!(boundary.len(), 32);
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        let inner = body.strip_suffix(&format!("--{boundary}--\r\n")).unwrap();
        let part = |part: &str| {
            let (head, content) = part.strip_suffix("\r\n").unwrap().split_once("\r\n\r\n").unwrap();
            let range = head.strip_prefix("Content-Type: text/plain\r\nContent-Range: ").unwrap();
            (content.as_bytes().to_vec(), range.to_owned())
        };
        inner.split(&format!("--{boundary}\r\n")).skip(1).map(part).collect()
    }

    #[test]
    fn several_parts_are_a_multipart() {
        let response = apply(Selection::Many(vec![8..10, 0..1]), stored(b"0123456789"));
        assert_eq!(response.status(), 206);
        let expected = [(b"89".to_vec(), "bytes 8-9/10".to_owned()), (b"0".to_vec(), "bytes 0-0/10".to_owned())];
        assert_eq!(parts(&response), expected);
        let headers = response.headers();
        assert_eq!(headers["content-length"], response.body().len().to_string());
        assert!(!headers.contains_key("content-range") && !headers.contains_key("content-digest"));
        assert_eq!(headers["etag"], "\"a\"");
        let again = apply(Selection::Many(vec![8..10, 0..1]), stored(b"0123456789"));
        assert_ne!(again.headers()["content-type"], headers["content-type"]);
    }

    proptest! {
        #[test]
        fn what_goes_out_is_what_was_selected(
            line in "bytes=([0-9]{1,2}-[0-9]{0,2}|-[0-9]{1,2})(,([0-9]{1,2}-[0-9]{0,2}|-[0-9]{1,2})){0,4}",
            body in "[a-z]{0,60}",
        ) {
            let selection = select(&map(&[("range", &line)]), &HeaderMap::new(), body.len() as u64);
            let response = apply(selection.clone(), stored(body.as_bytes()));
            prop_assert_eq!(response.headers()["content-length"].to_str().unwrap(), response.body().len().to_string());
            let index = |at: u64| usize::try_from(at).unwrap();
            let cut = |part: &Range<u64>| body.as_bytes()[index(part.start)..index(part.end)].to_vec();
            let range = |part: &Range<u64>| format!("bytes {}-{}/{}", part.start, part.end - 1, body.len());
            match selection {
                Selection::Whole => prop_assert_eq!(response.body(), body.as_bytes()),
                Selection::Unsatisfiable => prop_assert!(response.body().is_empty() && response.status() == 416),
                Selection::One(part) => {
                    prop_assert_eq!(response.headers()["content-range"].to_str().unwrap(), range(&part));
                    prop_assert_eq!(response.body(), &cut(&part));
                }
                Selection::Many(many) => {
                    let expected: Vec<_> = many.iter().map(|part| (cut(part), range(part))).collect();
                    prop_assert_eq!(parts(&response), expected);
                }
            }
        }
    }
}
