//! What the cache makes of a request whose response others may get: what selects it, and what its handler sees.
//!
//! Both are one: the key and the variant's key are made of the very values that [`Intake::clean`] leaves, so that
//! nothing the cache ignores reaches the handler.

mod codings;
mod cookies;
mod list;
mod told;

use std::borrow::Cow;

use http::header::{ACCEPT_ENCODING, COOKIE, HOST, USER_AGENT};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::key::Key;
use crate::client_ip::Origin;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What of a request counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Intake {
    /// Cookies that neither count nor reach the handler.
    pub(super) ignored_cookies: Vec<String>,
    /// The query parameters that count and reach the handler. `None`: the query as it is.
    pub(super) parameters: Option<Vec<String>>,
    /// Request fields in the primary key.
    keyed: Vec<HeaderName>,
    pub(super) accept_encoding_as_is: bool,
}

impl Intake {
    /// Adds a request field to the primary key. Sorted and unique: the order of configuration says nothing. `Host` is
    /// there already, in one spelling.
    pub(super) fn key_header(&mut self, name: HeaderName) {
        if name == HOST {
            return;
        }
        self.keyed.push(name);
        self.keyed.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        self.keyed.dedup();
    }

    pub(super) fn keyed(&self) -> &[HeaderName] {
        &self.keyed
    }

    /// What a field says to the handler of a clean request: the same for a request and its cleaned self.
    ///
    /// `None`: nothing, or what the key says already.
    pub(super) fn select<'a>(&self, request: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
        if self.is_told_by_the_key(name) {
            return None;
        }
        if *name == COOKIE {
            return cookies::joined(request, &self.ignored_cookies).map(Cow::Owned);
        }
        if *name == ACCEPT_ENCODING && !self.accept_encoding_as_is {
            return codings::canonical(request).map(|value| Cow::Borrowed(value.as_bytes()));
        }
        if *name == USER_AGENT {
            // Its comments hold commas that separate nothing (RFC 9110 §10.1.5).
            return list::as_they_stand(request.get_all(name));
        }
        list::joined(request.get_all(name))
    }

    /// Whether a cookie is left that counts.
    pub(super) fn has_cookies(&self, request: &HeaderMap) -> bool {
        cookies::kept(request, &self.ignored_cookies).next().is_some()
    }

    /// The part of a path and query that counts, byte for byte: names are compared as they stand, undecoded.
    pub(super) fn target<'a>(&self, target: &'a str) -> Cow<'a, str> {
        let Some(names) = &self.parameters else { return Cow::Borrowed(target) };
        let Some((path, query)) = target.split_once('?') else { return Cow::Borrowed(target) };
        let counts = |parameter: &&str| {
            let name = parameter.split_once('=').map_or(*parameter, |(name, _)| name);
            names.iter().any(|known| known == name)
        };
        if query.split('&').all(|parameter| counts(&parameter)) {
            return Cow::Borrowed(target);
        }
        let mut kept = String::with_capacity(target.len());
        kept.push_str(path);
        for parameter in query.split('&').filter(counts) {
            kept.push(if kept.len() == path.len() { '?' } else { '&' });
            kept.push_str(parameter);
        }
        Cow::Owned(if kept.is_empty() { "/".to_owned() } else { kept })
    }

    /// Takes out of a request what its key does not hold. What stays is a function of the key, of the fields that the
    /// response may vary by, and of fields that are the handler's to name in `Vary`.
    pub(super) fn clean(&self, primary: &Key, parts: &mut Parts) {
        let url = primary.url();
        let Ok(scheme) = Scheme::try_from(url.scheme) else { return };
        let Ok(host) = HeaderValue::from_bytes(url.host) else { return };
        self.clean_url(&mut parts.uri, &scheme, url.host);
        #[cfg(feature = "axum")]
        if let Some(original) = parts.extensions.get_mut::<axum::extract::OriginalUri>() {
            self.clean_url(&mut original.0, &scheme, url.host);
        }
        let fields = &mut parts.headers;
        let told: Vec<_> = fields.keys().filter(|name| self.is_told_by_the_key(name)).cloned().collect();
        for name in told {
            fields.remove(name);
        }
        // Whether there is an origin is the stack's doing, never the client's.
        if parts.extensions.get::<Origin>().is_some() {
            let scheme = HeaderValue::from_static(if scheme == Scheme::HTTPS { "https" } else { "http" });
            self.set(fields, X_FORWARDED_PROTO, scheme);
            self.set(fields, X_FORWARDED_HOST, host.clone());
        }
        fields.insert(HOST, host);
        self.spell(fields, &COOKIE);
        if !self.accept_encoding_as_is {
            self.spell(fields, &ACCEPT_ENCODING);
        }
        for name in &self.keyed {
            self.spell(fields, name);
        }
    }

    fn clean_url(&self, uri: &mut Uri, scheme: &Scheme, host: &[u8]) {
        let Some(target) = uri.path_and_query() else { return };
        let kept = self.target(target.as_str());
        let elsewhere = uri.authority().is_some_and(|authority| authority.as_str().as_bytes() != host)
            || uri.scheme().is_some_and(|stated| stated != scheme);
        if matches!(kept, Cow::Borrowed(_)) && !elsewhere {
            return;
        }
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = PathAndQuery::try_from(&*kept).ok();
        if uri.authority().is_some()
            && let Ok(authority) = Authority::try_from(host)
        {
            (parts.scheme, parts.authority) = (Some(scheme.clone()), Some(authority));
        }
        if let Ok(clean) = Uri::from_parts(parts) {
            *uri = clean;
        }
    }

    fn is_told_by_the_key(&self, name: &HeaderName) -> bool {
        *name == HOST || (told::names_the_resource(name) && !self.keyed.contains(name))
    }

    fn set(&self, fields: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
        if !self.keyed.contains(&name) {
            fields.insert(name, value);
        }
    }

    /// One line, spelled as it selects.
    fn spell(&self, fields: &mut HeaderMap, name: &HeaderName) {
        let mut lines = fields.get_all(name).iter();
        let (first, more) = (lines.next(), lines.next().is_some());
        let Some(first) = first else { return };
        let sensitive = fields.get_all(name).iter().any(HeaderValue::is_sensitive);
        let value = match self.select(fields, name) {
            Some(value) if !more && *value == *first.as_bytes() => return,
            value => value.and_then(|value| HeaderValue::from_bytes(&value).ok()),
        };
        match value {
            Some(mut value) => {
                value.set_sensitive(sensitive);
                fields.insert(name.clone(), value);
            }
            None => {
                fields.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn request(uri: &str, fields: &[(&str, &str)], pinned: bool) -> Parts {
        let mut parts = Request::get(uri).body(()).unwrap().into_parts().0;
        for (name, value) in fields {
            parts.headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        if pinned {
            parts.extensions.insert("https://shop.example".parse::<Origin>().unwrap());
        }
        #[cfg(feature = "axum")]
        parts.extensions.insert(axum::extract::OriginalUri(uri.parse().unwrap()));
        parts
    }

    fn key(intake: &Intake, parts: &Parts) -> Option<Key> {
        Key::primary(intake, &parts.uri, &parts.headers, &parts.extensions)
    }

    fn cleaned(intake: &Intake, mut parts: Parts) -> Option<(Key, Parts)> {
        let key = key(intake, &parts)?;
        intake.clean(&key, &mut parts);
        Some((key, parts))
    }

    fn lines(parts: &Parts, name: &str) -> Vec<String> {
        parts.headers.get_all(name).iter().map(|line| String::from_utf8(line.as_bytes().to_vec()).unwrap()).collect()
    }

    #[test]
    fn what_the_key_tells_is_taken_out_or_told_by_the_key() {
        let fields = [
            ("host", "Evil.example:80"),
            ("x-forwarded-host", "evil.example"),
            ("X-Forwarded-Proto", "nothttps"),
            ("x_forwarded_host", "evil.example"),
            ("x-http-method-override", "DELETE"),
            ("forwarded", "host=evil.example"),
            ("x-original-url", "/admin"),
            ("x-forwarded-for", "1.2.3.4"),
            ("accept", "text/html"),
        ];
        let (_, alone) = cleaned(&Intake::default(), request("/", &fields, false)).unwrap();
        let mut names: Vec<_> = alone.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "host", "x-forwarded-for"]);
        assert_eq!(lines(&alone, "host"), ["evil.example"]);

        let (_, behind) = cleaned(&Intake::default(), request("/", &fields, true)).unwrap();
        assert_eq!(lines(&behind, "host"), ["shop.example"]);
        assert_eq!(lines(&behind, "x-forwarded-host"), ["shop.example"]);
        assert_eq!(lines(&behind, "x-forwarded-proto"), ["https"]);
        assert_eq!(behind.headers.len(), 5);

        let mut keyed = Intake::default();
        keyed.key_header(X_FORWARDED_PROTO);
        keyed.key_header(HeaderName::from_static("x-original-url"));
        let (_, behind) = cleaned(&keyed, request("/", &fields, true)).unwrap();
        assert_eq!(lines(&behind, "x-forwarded-proto"), ["nothttps"]);
        assert_eq!(lines(&behind, "x-original-url"), ["/admin"]);
    }

    #[test]
    fn urls_say_what_the_key_says() {
        let intake = Intake { parameters: Some(vec!["a".to_owned(), "b".to_owned()]), ..Intake::default() };
        for (uri, pinned, expected) in [
            ("/p", false, "/p"),
            ("/p?", false, "/p"),
            ("/p?utm=1", false, "/p"),
            ("/p?b=2&utm=1&a=1", false, "/p?b=2&a=1"),
            ("/p?a&a=&a=1", false, "/p?a&a=&a=1"),
            ("/p?utm=1;a=2&a=1;utm=2", false, "/p?a=1;utm=2"),
            ("/p?%61=1&A=1&a[]=1&a%3D1&=a", false, "/p"),
            ("/p?&&a=1&", false, "/p?a=1"),
            ("http://shop.example?x=1", false, "http://shop.example/"),
            ("http://Shop.example:80/p?a=1", false, "http://shop.example/p?a=1"),
            ("http://internal:8080/p?x", true, "https://shop.example/p"),
            ("*", true, "*"),
        ] {
            let host = uri.split('/').nth(2).map_or("shop.example", |host| host.split('?').next().unwrap());
            let (before, parts) = cleaned(&intake, request(uri, &[("host", host)], pinned)).unwrap();
            assert_eq!(parts.uri, expected, "{uri}");
            assert_eq!(key(&intake, &parts), Some(before), "{uri}");
            #[cfg(feature = "axum")]
            assert_eq!(parts.extensions.get::<axum::extract::OriginalUri>().unwrap().0, expected, "{uri}");
        }
    }

    #[test]
    fn the_url_names_no_host_rather_than_another() {
        let mut parts = request("http://internal/p", &[], false);
        parts.extensions.insert("https://a%20b".parse::<Origin>().unwrap());
        let (_, parts) = cleaned(&Intake::default(), parts).unwrap();
        assert_eq!(parts.uri, "/p");
    }

    #[test]
    fn fields_select_in_the_words_the_handler_gets() {
        let fields = [
            ("host", "a"),
            ("cookie", "_ga=1; theme=dark"),
            ("cookie", "lang=de"),
            ("accept-encoding", "br;q=0.9, gzip"),
            ("accept", " a , b"),
        ];
        let intake = Intake { ignored_cookies: vec!["_ga".to_owned()], ..Intake::default() };
        let select = |intake: &Intake, name: &str| {
            let value = intake.select(&request("/", &fields, false).headers, &name.parse().unwrap())?.into_owned();
            Some(String::from_utf8(value).unwrap())
        };
        assert_eq!(select(&intake, "cookie").unwrap(), "theme=dark; lang=de");
        assert_eq!(select(&intake, "accept-encoding").unwrap(), "br, gzip");
        assert_eq!(select(&intake, "accept").unwrap(), "a,b");
        assert_eq!(select(&intake, "host"), None);
        assert_eq!(select(&intake, "absent"), None);
        let as_is = Intake { accept_encoding_as_is: true, ..Intake::default() };
        assert_eq!(select(&as_is, "accept-encoding").unwrap(), "br;q=0.9,gzip");
        let (_, parts) = cleaned(&as_is, request("/", &fields, false)).unwrap();
        assert_eq!(lines(&parts, "accept-encoding"), ["br;q=0.9, gzip"]);
    }

    const GOVERNED: [&str; 12] = [
        "host",
        "user-agent",
        "cookie",
        "accept-encoding",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x_forwarded_host",
        "x-original-url",
        "x-http-method-override",
        "forwarded",
        "x-forwarded-prefix",
        "x-tenant",
    ];
    const VALUES: [&str; 12] =
        ["a", "A", "a:80", "b", "", "_ga=1", "_ga=1; s=2", "s=2", "gzip;q=0.5, br", "br,gzip", "a , b", "a,b"];

    fn any_request() -> impl Strategy<Value = (String, Vec<(&'static str, &'static str)>)> {
        let field = (proptest::sample::select(&GOVERNED[..]), proptest::sample::select(&VALUES[..]));
        let uri = "(/|http://(a|A|a:80)/)p?(\\?(x|y|x=1|y=2|&){0,3})?";
        (uri, proptest::collection::vec(field, 0..5)).prop_map(|(uri, mut fields)| {
            if uri.starts_with('/') && !fields.iter().any(|(name, _)| *name == "host") {
                fields.push(("host", "a"));
            }
            (uri, fields)
        })
    }

    fn any_intake() -> impl Strategy<Value = Intake> {
        let keyed = proptest::collection::vec(proptest::sample::select(&GOVERNED[..]), 0..3);
        (any::<bool>(), any::<bool>(), any::<bool>(), keyed).prop_map(|(cookies, parameters, as_is, keyed)| {
            let mut intake = Intake {
                ignored_cookies: if cookies { vec!["_ga".to_owned()] } else { Vec::new() },
                parameters: parameters.then(|| vec!["x".to_owned()]),
                accept_encoding_as_is: as_is,
                ..Intake::default()
            };
            keyed.iter().for_each(|name| intake.key_header(name.parse().unwrap()));
            intake
        })
    }

    /// All that a handler sees of the fields governed here, and of the URL beside its form.
    fn sight(parts: &Parts) -> Vec<(&'static str, Vec<String>)> {
        let target = parts.uri.path_and_query().unwrap().to_string();
        GOVERNED.iter().map(|name| (*name, lines(parts, name))).chain([(":path", vec![target])]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn cleaning_again_changes_nothing(intake in any_intake(), (uri, fields) in any_request(), pinned: bool) {
            let parts = request(&uri, &fields, pinned);
            let names = GOVERNED.map(|name| name.parse::<HeaderName>().unwrap());
            let select = |parts: &Parts| {
                names.each_ref().map(|name| intake.select(&parts.headers, name).map(Cow::into_owned))
            };
            let (selected, cookies) = (select(&parts), intake.has_cookies(&parts.headers));
            let Some((before, once)) = cleaned(&intake, parts) else { return Ok(()) };
            prop_assert_eq!(select(&once), selected);
            prop_assert_eq!(intake.has_cookies(&once.headers), cookies);
            let seen = sight(&once);
            let (after, twice) = cleaned(&intake, once).unwrap();
            prop_assert_eq!(before, after);
            prop_assert_eq!(sight(&twice), seen);
        }

        /// Poisoning takes two requests that the cache takes for one and the handler does not.
        #[test]
        fn what_shares_a_key_and_its_selected_values_looks_the_same_to_the_handler(
            intake in any_intake(),
            requests in proptest::collection::vec(any_request(), 60),
            pinned: bool,
        ) {
            // The fields that the response varies by.
            let varying = [COOKIE, ACCEPT_ENCODING, USER_AGENT, HeaderName::from_static("x-tenant")];
            let is_free = |name: &str| {
                let unkeyed = intake.keyed.iter().all(|keyed| keyed.as_str() != name);
                unkeyed && (name == "x-tenant" || (name == "accept-encoding" && intake.accept_encoding_as_is))
            };
            let mut seen = HashMap::new();
            for (uri, fields) in requests {
                let parts = request(&uri, &fields, pinned);
                let selected = varying.each_ref().map(|name| intake.select(&parts.headers, name).map(Cow::into_owned));
                let Some((key, parts)) = cleaned(&intake, parts) else { continue };
                let host = parts.uri.authority().map(|host| host.as_str().as_bytes());
                prop_assert!(host.is_none_or(|host| host == key.url().host));
                let mut sight = sight(&parts);
                sight.retain(|(name, _)| !is_free(name));
                let first = seen.entry((key.as_bytes().to_vec(), selected)).or_insert_with(|| sight.clone());
                prop_assert_eq!(&*first, &sight);
            }
        }
    }
}
