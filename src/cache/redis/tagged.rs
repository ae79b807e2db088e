//! The generations of one response's tags: from the mirror, or from Redis.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::redis::Value as Answer;

use super::hub::Hub;
use super::metrics::Dropped;
use super::put::{BEYOND, Unwritten, millis};
use super::tags::Generations;
use super::token::{Maker, is_older, token};
use super::value;
use crate::cache::entry::{Kind, Record};
use crate::cache::store::StoreFailure;
use crate::redis::StoreError;

/// Those of tags last at least this long from the last write.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

impl Hub {
    /// Of each tag: as the mirror has it, while that is right, or as Redis does. What would void a response is not taken
    /// from the mirror: Redis may have lost a tag, and another process begun it anew.
    pub(super) async fn generations_of(
        &self,
        tags: &[Box<str>],
        had: &[Generations],
    ) -> Result<Vec<Option<Generations>>, StoreError> {
        let alive = self.channel.is_alive();
        let mirrored = |tag: &str, hard: u128| self.tags.get(tag).filter(|known| alive && known.0 == hard);
        let mut known: Vec<_> = tags.iter().zip(had).map(|(tag, had)| mirrored(tag, had.0)).collect();
        let unknown: Vec<&str> =
            tags.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(tag, _)| &**tag).collect();
        if unknown.is_empty() {
            return Ok(known);
        }
        let asked = self.tags.ask(unknown.iter().copied());
        let names: Vec<_> = unknown.iter().map(|tag| self.names.tag(tag)).collect();
        let found: Vec<_> = self.mget(&names).await?.map(|found| value::unpack(found.as_deref()?)).collect();
        if alive {
            self.tags.learn(&asked, unknown.into_iter().zip(found.iter().copied()), None);
        }
        for (place, found) in known.iter_mut().filter(|known| known.is_none()).zip(found) {
            *place = found;
        }
        Ok(known)
    }

    /// The generations of the response's tags, made where there are none.
    pub(super) async fn tags_for(
        &self,
        record: &Record,
        fenced: bool,
        now: SystemTime,
        left: Duration,
    ) -> Result<Vec<Generations>, Unwritten> {
        let (Kind::Response(entry), tags) = (&record.0, value::tags_of(record)) else { return Ok(Vec::new()) };
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let (stamp, alive) = (entry.head.stamp, self.channel.is_alive());
        let mirrored = |tag: &str| self.tags.known_before(tag, stamp).filter(|_| alive);
        let until = now + left + BEYOND;
        if alive && self.tags.are_kept(tags, now, until) {
            let known: Vec<_> = tags.iter().map_while(|tag| mirrored(tag)).collect();
            if known.len() == tags.len() {
                return Ok(known);
            }
        }
        let found = self.ensure(tags, now, left + BEYOND).await?;
        // What was not in the mirror when the request was forwarded may have been purged since.
        let forwarded = if fenced { UNIX_EPOCH + Duration::from_micros(stamp) } else { now };
        let holds = |tag: &str, found: Generations| {
            !fenced || mirrored(tag) == Some(found) || is_older(found.0, forwarded) && is_older(found.1, forwarded)
        };
        if tags.iter().zip(&found).all(|(tag, found)| holds(tag, *found)) {
            Ok(found)
        } else {
            Err(Unwritten::For(Dropped::Unsure))
        }
    }

    async fn ensure(&self, tags: &[Box<str>], now: SystemTime, least: Duration) -> Result<Vec<Generations>, Unwritten> {
        let names: Vec<_> = tags.iter().map(|tag| self.names.tag(tag)).collect();
        let fresh = token(Maker::Fill, now);
        let lifetime = least.max(LIFETIME);
        let asked = self.tags.ask(tags.iter().map(|tag| &**tag));
        let answer = self
            .run(&self.scripts.ensure, &names, &[&value::pack((fresh, fresh)), &millis(least), &millis(lifetime)])
            .await?;
        let answers = if let Answer::Array(answers) = answer { answers } else { Vec::new() };
        let found: Vec<_> = answers
            .iter()
            .map_while(|answer| if let Answer::BulkString(bytes) = answer { value::unpack(bytes) } else { None })
            .collect();
        if found.len() != tags.len() {
            return Err(Unwritten::Failed(StoreFailure::unavailable()));
        }
        if self.channel.is_alive() {
            let answers = tags.iter().zip(&found).map(|(tag, found)| (&**tag, Some(*found)));
            self.tags.learn(&asked, answers, Some((now, now + least)));
        }
        Ok(found)
    }
}
