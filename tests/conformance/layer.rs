//! The cache under test.

use http::HeaderName;
use tower::Layer;
use tower_scale::cache::{Cache, CacheLayer, CachePolicy, MemoryStore};

use std::time::Duration;

use crate::case::Options;
use crate::clock::Clock;
use crate::origin::Origin;

/// A fresh cache with this policy, as the case wants it otherwise.
pub fn cache(policy: CachePolicy, options: &Options, origin: Origin, clock: Clock) -> Cache<Origin> {
    let mut policy = policy;
    if let Some(obey) = options.request_directives {
        policy = policy.request_directives(obey);
    }
    if let Some(allow) = options.stale_beside_s_maxage {
        policy = policy.stale_beside_s_maxage(allow);
    }
    if let Some(names) = &options.targeted_fields {
        policy = policy.targeted_fields(names.iter().map(|name| name.parse::<HeaderName>().unwrap()));
    }
    let mut layer = CacheLayer::new(MemoryStore::new(16 << 20)).policy(policy).clock(move || clock.now());
    if let Some(bytes) = options.max_object_bytes {
        layer = layer.max_object_bytes(bytes);
    }
    let seconds = Duration::from_secs;
    if let Some(period) = options.stale_if_error.map(seconds) {
        layer = layer.stale_if_error(period);
    }
    if let Some(period) = options.stale_while_revalidate.map(seconds) {
        layer = layer.stale_while_revalidate(period);
    }
    if let Some(timeout) = options.fetch_timeout.map(seconds) {
        layer = layer.fetch_timeout(timeout);
    }
    if let Some(ttl) = options.ttl.map(seconds) {
        layer = layer.ttl(ttl);
    }
    if let Some(ttl) = options.negative_ttl.map(seconds) {
        layer = layer.negative_ttl(ttl);
    }
    layer.layer(origin)
}
