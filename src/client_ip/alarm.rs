//! Tells the operator, once, what keeps a layer from knowing its clients.

use std::sync::{Arc, OnceLock};

use http::{Extensions, HeaderMap};

use super::peer::ClientIp;

/// Says once per layer that the server leaves no peer, and what to add.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerAlarm(Arc<OnceLock<()>>);

impl PeerAlarm {
    pub(crate) fn raise(&self) {
        self.0.get_or_init(|| {
            #[cfg(feature = "tracing")]
            tracing::error!(
                "no peer address in the request's extensions, so every request is answered with status 500; with axum, \
                 serve `into_make_service_with_connect_info::<SocketAddr>()` and enable the feature `axum` of \
                 tower-scale; with tonic, enable its feature `tonic`; else insert `PeerAddr` into every request; behind \
                 a Unix socket, add `ClientIpLayer::trusted_unix_peers`"
            );
        });
    }
}

/// Says once per layer that proxies name clients and nobody believes them, and what to add.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrustAlarm(#[cfg_attr(not(feature = "tracing"), allow(dead_code))] Arc<State>);

/// A request is looked at for forwarding fields only sometimes: a look costs as much as a decision of the limiter.
#[derive(Debug, Default)]
struct State {
    #[cfg(feature = "tracing")]
    requests: std::sync::atomic::AtomicU32,
    #[cfg(feature = "tracing")]
    raised: std::sync::atomic::AtomicBool,
}

impl TrustAlarm {
    /// Of a request whose client no [`ClientIpLayer`](super::ClientIpLayer) has found.
    #[cfg_attr(not(feature = "rate-limit"), allow(dead_code))]
    pub(crate) fn notice_unidentified(&self, headers: &HeaderMap, extensions: &Extensions) {
        if extensions.get::<ClientIp>().is_none() {
            self.notice(headers);
        }
    }

    /// Of a request that was taken to come from its peer, since nobody is trusted. The first one is looked at, and then
    /// one of 256.
    #[cfg(feature = "tracing")]
    pub(crate) fn notice(&self, headers: &HeaderMap) {
        use std::sync::atomic::Ordering::Relaxed;
        let State { requests, raised } = &*self.0;
        if raised.load(Relaxed) {
            return;
        }
        // Two at once may count as one: a locked increment would cost more than that is worth.
        let number = requests.load(Relaxed);
        requests.store(number.wrapping_add(1), Relaxed);
        if number % 256 == 0 && names_a_client(headers) && !raised.swap(true, Relaxed) {
            tracing::warn!(
                "requests carry forwarding headers, and no proxy is trusted, so every client has the address of whoever \
                 connects; behind a proxy, name it: \
                 `ClientIpLayer::new().trusted_proxies(\"10.0.0.0/8\".parse()?)`, outside of the layers that ask for \
                 the client; without one, clients made these headers up, and nothing has to be done"
            );
        }
    }

    #[cfg(not(feature = "tracing"))]
    #[allow(clippy::unused_self, reason = "as with tracing")]
    pub(crate) fn notice(&self, _: &HeaderMap) {}
}

#[cfg(feature = "tracing")]
fn names_a_client(headers: &HeaderMap) -> bool {
    ["x-forwarded-for", "forwarded", "x-real-ip", "cf-connecting-ip", "true-client-ip"]
        .iter()
        .any(|name| headers.contains_key(*name))
}
