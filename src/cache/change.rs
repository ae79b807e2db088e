//! What a request with an unsafe method does to what is stored (RFC 9111 §4.4).

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use tokio::runtime::Handle;

use super::body::{BoxError, ResponseBody};
use super::case::Case;
use super::fill::settle;
use super::fleet::Fleet;
use super::key::Key;
use super::layer::Shared;
use super::lookup::Miss;
use super::plan::{Manner, Plan};
use super::status::Forward;
use super::store::{Reply, StoreFailure};
use super::storing;
use super::update::Held;

/// A URL that a request changes, if it succeeds.
pub(super) struct Change {
    case: Case,
    /// The store has already cost the request its time: only this process can be told.
    spent: bool,
    /// For a POST, where the policy lets its response answer a later GET (RFC 9110 §9.3.3).
    plan: Option<Box<Plan>>,
}

/// What has been forgotten: at once, or after a round trip.
pub(super) type Removal = Reply<Result<(), StoreFailure>>;

impl Change {
    pub(super) fn new<B>(case: Case, request: Request<B>) -> (Self, Request<B>) {
        let spent = case.shared.store.is_spent(request.extensions());
        if *request.method() != Method::POST || !case.config.policy.store_post {
            return (Self { case, spent, plan: None }, request);
        }
        let (mut parts, body) = request.into_parts();
        let seen = case.shared.flights.stored(&case.primary);
        let (key, forward) = (case.primary.clone(), Forward::Method);
        let miss = Miss { key, seen, forward, known: None, held: Held::default(), control: None };
        let plan = Plan::new(case.clone(), &mut parts, miss, Manner::Alone, !spent);
        (Self { case, spent, plan: Some(Box::new(plan)) }, Request::from_parts(parts, body))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.case.shared
    }

    /// Forgets what the response says has changed: the URL itself, and what `Location` and `Content-Location` name on
    /// the same origin.
    pub(super) fn apply<B>(&self, response: &Response<B>) -> Removal {
        if !is_success(response.status()) {
            return Reply::Now(Ok(()));
        }
        let named = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| self.named(response.headers(), &name));
        let mut keys = vec![self.case.primary.clone()];
        keys.extend(named.filter(|key| *key != self.case.primary));
        let mut later = Vec::new();
        for key in keys {
            match self.case.shared.invalidate(key, self.spent) {
                Reply::Now(Ok(())) => {}
                now @ Reply::Now(Err(_)) => later.push(now),
                wait @ Reply::Later(_) => later.push(wait),
            }
        }
        if later.is_empty() {
            return Reply::Now(Ok(()));
        }
        Reply::Later(Box::pin(async move {
            let mut done = Ok(());
            for removal in later {
                done = done.and(removal.wait().await);
            }
            done
        }))
    }

    fn named(&self, headers: &HeaderMap, field: &HeaderName) -> Option<Key> {
        let reference = headers.get(field)?.to_str().ok()?;
        let base = self.case.primary.url();
        let [scheme, host, target] = [base.scheme, base.host, base.asked()].map(std::str::from_utf8);
        let url: Uri = resolve(scheme.ok()?, host.ok()?, target.ok()?, reference)?.parse().ok()?;
        let key = Key::of_url(&self.case.config.intake, &url, Some(&self.case.primary))?;
        let named = key.url();
        ((named.scheme, named.host) == (base.scheme, base.host)).then_some(key)
    }

    /// The response itself, stored for GET where it may be.
    ///
    /// `told`: what several processes share knows of the change.
    pub(super) async fn finish<B>(
        self,
        response: Response<B>,
        told: bool,
    ) -> Result<Response<ResponseBody<B>>, Response<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let names_itself =
            self.named(response.headers(), &CONTENT_LOCATION).is_some_and(|key| key == self.case.primary);
        let states = storing::states_lifetime(response.headers(), &self.case.config.policy);
        match self.plan {
            Some(mut plan) if names_itself && states && response.status().is_success() => {
                plan.start_over();
                if told && plan.case.shared.fleet.is_some() {
                    let _ = plan.look_further().await;
                }
                let (_, Ok(response)) = settle(*plan, Ok::<_, std::convert::Infallible>(response)).await;
                Ok(response)
            }
            _ => Err(response),
        }
    }

    /// Whether [`finish`](Self::finish) can do anything.
    pub(super) fn may_store(&self) -> bool {
        self.plan.is_some()
    }
}

/// RFC 9111 §4.4: a non-error response.
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// A reference against its base (RFC 3986 §5.2). Dot segments stay as they are in whole URLs.
fn resolve(scheme: &str, host: &str, target: &str, reference: &str) -> Option<String> {
    let reference = reference.split('#').next()?;
    let path = target.split('?').next()?;
    if let Some((before, _)) = reference.split_once("://")
        && !before.contains(['/', '?'])
    {
        return Some(reference.to_owned());
    }
    if let Some(rest) = reference.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    let absolute = match reference.as_bytes().first() {
        None => target.to_owned(),
        Some(b'/') => without_dots(reference),
        Some(b'?') => format!("{path}{reference}"),
        Some(_) => without_dots(&format!("{}/{reference}", path.rsplit_once('/')?.0)),
    };
    Some(format!("{scheme}://{host}{absolute}"))
}

/// RFC 3986 §5.2.4, of a path from the root, with what follows it.
fn without_dots(target: &str) -> String {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let mut kept = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment == ".." {
            kept.pop();
        }
        match segment {
            "." | ".." if segments.peek().is_some() => {}
            "." | ".." => kept.push(""),
            segment => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

impl Shared {
    /// Forgets the response to a GET of this URL, with all variants, and voids fetches under way.
    fn invalidate(self: &Arc<Self>, primary: Key, spent: bool) -> Removal {
        if let Some(fleet) = &self.fleet {
            return self.invalidate_everywhere(fleet, &primary, spent);
        }
        let removal = self.flights.in_order(&primary, || {
            self.flights.note_voided(&primary);
            let removal = if spent { Reply::Now(Ok(())) } else { self.store.remove(&primary) };
            // Again: whoever has looked in between may have read what is now removed, and must not build on it.
            self.flights.note_voided(&primary);
            removal
        });
        match removal {
            Reply::Now(done) => Reply::Now(done),
            // Not that one: it could come before what the store is being told at the moment.
            Reply::Later(_) => {
                let shared = self.clone();
                Reply::Later(Box::pin(async move {
                    let _order = shared.flights.removing(&primary).await;
                    let done = shared.store.remove(&primary).wait().await;
                    shared.flights.note_voided(&primary);
                    done
                }))
            }
        }
    }

    /// The same in every process. Nothing is written that was read before: the store compares.
    fn invalidate_everywhere(&self, fleet: &Arc<dyn Fleet>, primary: &Key, spent: bool) -> Removal {
        self.flights.note_voided(primary);
        let told = fleet.invalidate(primary);
        if !spent {
            return Reply::Later(told);
        }
        // It has cost the request its time already: others learn of it all the same.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(told);
        }
        Reply::Now(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_resolve_against_the_changed_url() {
        for (reference, expected) in [
            ("", "http://a/b/c?q"),
            ("#frag", "http://a/b/c?q"),
            ("d", "http://a/b/d"),
            ("d?x#f", "http://a/b/d?x"),
            ("?x", "http://a/b/c?x"),
            ("/d", "http://a/d"),
            ("../d", "http://a/d"),
            ("../../d/./e/..", "http://a/d/"),
            (".", "http://a/b/"),
            ("/./d/../e?f/../g", "http://a/e?f/../g"),
            ("/d//e", "http://a/d//e"),
            ("/d?e=http://f/g", "http://a/d?e=http://f/g"),
            ("//e/d", "http://e/d"),
            ("https://a/d", "https://a/d"),
        ] {
            assert_eq!(resolve("http", "a", "/b/c?q", reference).as_deref(), Some(expected), "{reference}");
        }
    }
}
