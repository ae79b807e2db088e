//! Responses in a Redis that several processes share.

use std::future::Future;
use std::time::SystemTime;

use ::redis::{Cmd, Value};
use bytes::Bytes;
use http::Extensions;

use super::entry::Record;
use super::key::Key;
use super::store::{Reply, Store, StoreFailure};
use crate::redis::{Kind, Redis, StoreError};

/// Larger bodies would hold up everything else on the connection.
const MAX_OBJECT_BYTES: usize = 1 << 20;

/// A store in Redis, shared by every process that uses the same server and prefix.
///
/// A lookup is one `GET` (two where the URL's responses vary), a store one `SET … PX` (two likewise): the response
/// expires in Redis when it is of no more use. Bodies of up to 1 MiB. Whatever goes wrong is a miss.
#[derive(Clone, Debug)]
pub struct RedisStore {
    redis: Redis,
}

impl RedisStore {
    /// A store on this handle, under its prefix.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        Self { redis }
    }

    fn name(&self, key: &Key) -> Vec<u8> {
        self.redis.key("cache", key.as_bytes())
    }

    fn send(&self, command: Cmd) -> impl Future<Output = Result<Value, StoreFailure>> + Send + 'static {
        let redis = self.redis.clone();
        async move { redis.query(&command).await.map_err(|error| trouble(&error)) }
    }
}

fn trouble(error: &StoreError) -> StoreFailure {
    StoreFailure { timed_out: error.kind() == Kind::Timeout }
}

impl Store for RedisStore {
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        let mut command = Cmd::new();
        command.arg("GET").arg(self.name(key));
        let (reply, key) = (self.send(command), key.clone());
        Reply::later(async move {
            Ok(match reply.await? {
                Value::BulkString(bytes) => Record::decode(&key, Bytes::from(bytes)),
                _ => None,
            })
        })
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        let (left, bytes) = (record.keep_for(SystemTime::now()), record.encode(key));
        // What cannot be kept must not leave an older record in place.
        let (Some(left), Some(bytes)) = (left, bytes) else { return self.remove(key) };
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 42);
        let mut command = Cmd::new();
        command.arg("SET").arg(self.name(key)).arg(&*bytes).arg("PX").arg(left);
        let reply = self.send(command);
        Reply::later(async move { reply.await.map(|_| ()) })
    }

    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
        let mut command = Cmd::new();
        command.arg("DEL").arg(self.name(key));
        let reply = self.send(command);
        Reply::later(async move { reply.await.map(|_| ()) })
    }

    fn max_object_bytes(&self) -> usize {
        MAX_OBJECT_BYTES
    }

    fn is_spent(&self, extensions: &Extensions) -> bool {
        self.redis.is_spent(extensions)
    }

    fn mark_spent(&self, extensions: &mut Extensions) {
        self.redis.mark_spent(extensions);
    }
}
