//! Responses in Redis, alone or behind each process's memory: coherent over all processes that share a server and prefix.
//!
//! 1. **Names.** `{prefix}cache:{U}…`, where `U` is a 128-bit hash of scheme, host and target as the client asked for it, in
//!    braces, so that all of one URL is on one node of a cluster. `…K` is a response (`K` hashes the whole key), `…Kl` the
//!    lease to fetch it, `…g` the URL's generations. `{prefix}cache:{gens}broad` is the list of purges by prefix and of
//!    everything, `{prefix}cache:{gens}t:T` the generations of the tag with hash `T`. Field values that responses vary by
//!    are only hashed there; the record itself holds the whole key, and is compared by it.
//! 2. **Generations are tokens**: 48 bits of the time in milliseconds, 80 random ones; a hard one and a soft one per name. A
//!    response carries those of its URL and of its tags, and the newest broad purge that was known when its request was
//!    forwarded. It holds where all hard ones are still the same; another soft one makes it stale. So nothing depends on
//!    clocks that agree, a counter that starts anew never repeats itself, and **a generation that is not there voids**:
//!    what was evicted or flushed never brings back what it had outdated. (A restored snapshot does: it is whole.)
//! 3. **One `MGET` per hit**: the response and its URL's generations. Those of tags, and the list of broad purges, are
//!    mirrored in the process while its invalidation channel is alive: a name that is not in the mirror costs one more trip
//!    (one command for all of them). The mirror has a bound.
//! 4. **A purge** of a URL or of a tag writes a new token, one by prefix or of everything appends to the list; the same script
//!    publishes it. Of the list, the newest 1024 are kept: a response from before the oldest of them is void.
//! 5. **A fill** stores by a script that compares the URL's generations with those that its lookup has read. Where that
//!    found none, those that another variant's fill has made since are as good. A tag that is first met after the request
//!    was forwarded counts only if no purge has made its token (it says so), or a minute ago.
//! 6. **The invalidation channel** is a subscription to `{prefix}cache:inv` on a connection of its own. It carries purges,
//!    invalidations, what has been overwritten, and how leases end. Every 500 ms a heartbeat goes out through every
//!    master, and has to come back by the next, through the same connection, though on a channel that only its sender
//!    hears; it also compares the newest broad purge.
//! 7. **A memory in front** ([`TieredStore`]) holds what this process has read and written. While the channel is alive,
//!    what it holds is used at once. Once it is lost, each response is used for
//!    [5 s](TieredStore::disconnected_ttl) more at most, and what is stored meanwhile for as long. When it is back, what was
//!    there before is read from Redis once more. What has expired is always looked for in Redis before it is fetched.
//! 8. **Leases.** Who finds nothing of a key that has been cacheable before (its URL's generations say so, and outlive its
//!    responses by an hour) fetches under a lease of 2 s, renewed while the fetch goes on. Others wait until it is stored,
//!    or not for sharing (told at its head), or failed; 5 s at most, then they go themselves.
//! 9. **Writes** are off the request's path: at most 256, and 64 MiB, at once. Beyond, a response is not stored.
//!
//! It never: asks `KEYS` or `SCAN`, runs a command without a deadline, makes a request wait for anything but a lookup or a
//! lease, repeats a write.

mod broad;
mod channel;
mod hub;
mod lease;
mod look;
mod message;
mod metrics;
mod names;
mod pending;
mod purging;
mod put;
mod remove;
mod scripts;
mod store;
mod tagged;
mod tags;
mod tiered;
mod token;
mod value;
mod wire;
mod writes;

pub use store::RedisStore;
pub use tiered::TieredStore;
