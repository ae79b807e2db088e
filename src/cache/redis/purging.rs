//! What a purge does in Redis: one script for names, one for the list.
//!
//! A purge may be sent again, since nobody knows what became of it. Each time it brings a token that has never been used,
//! and all those that it brought before: where one of them stands, it has been carried out, and nothing happens. A token
//! that came back after another purge's would bring back what that had voided.
//!
//! A Redis that is full and may not evict refuses what takes room, unless the script has freed some before: so each of
//! them does that first. What it puts there then is hardly more than what was there.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use super::broad::{Entry, LENGTH};
use super::hub::Hub;
use super::message::{Message, News};
use super::pending::Attempt;
use crate::cache::purge::{Purge, What};
use crate::redis::{Script, StoreError};

/// The generations outlive what was being fetched when they were made: a response that comes later is compared with them.
const URL_LIVES: Duration = Duration::from_secs(5 * 60);
const TAG_LIVES: Duration = Duration::from_secs(24 * 60 * 60);

/// Of a URL nothing is known but that it was purged: its response has not been cacheable before.
const UNMARKED: &[u8] = &[0];

static NAME: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local token, gentle, rest = ARGV[1], ARGV[2] == '1', ARGV[3]
        local now, hard, soft = redis.call('GET', KEYS[1]), token, token
        if now and #now >= 32 then
            hard, soft, rest = string.sub(now, 1, 16), string.sub(now, 17, 32), string.sub(now, 33)
            for i = 7, #ARGV do
                if ARGV[i] == (gentle and soft or hard) then return 0 end
            end
            if gentle then soft = token else hard = token end
        end
        local left = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[4]))
        redis.call('DEL', KEYS[1])
        redis.call('SET', KEYS[1], hard .. soft .. rest, 'PX', left)
        redis.call('PUBLISH', ARGV[5], ARGV[6] .. hard .. soft)
        return 1",
    )
});

static LIST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "for i = 6, #ARGV do
            if redis.call('LPOS', KEYS[1], ARGV[i]) then return 0 end
        end
        if ARGV[2] == '1' then redis.call('DEL', KEYS[1]) end
        redis.call('LTRIM', KEYS[1], 1 - tonumber(ARGV[3]), -1)
        redis.call('RPUSH', KEYS[1], ARGV[1])
        redis.call('PUBLISH', ARGV[4], ARGV[5])
        return 1",
    )
});

/// Carries it out. Once this is `Ok`, this process's mirrors know of it too.
pub(super) async fn purge(hub: &Hub, attempt: &Attempt, now: SystemTime) -> Result<(), StoreError> {
    let Purge(what) = &attempt.purge;
    match what {
        What::Url(url) => name(hub, attempt, &hub.names.generations_of(url), UNMARKED, URL_LIVES).await,
        What::Tag(tag) => {
            name(hub, attempt, &hub.names.tag(tag), b"", TAG_LIVES).await?;
            // The message that tells what they are now may still be on its way.
            let heard = hub.tags.get(tag).is_some_and(|(hard, soft)| {
                let newest = if attempt.soft { soft } else { hard };
                attempt.token == newest || attempt.before.contains(&newest)
            });
            if !heard {
                hub.tags.unlearn(tag);
            }
            Ok(())
        }
        What::Prefix(_) | What::Everything => {
            list(hub, attempt).await?;
            hub.broad.refresh(hub, now).await
        }
    }
}

async fn name(hub: &Hub, attempt: &Attempt, name: &[u8], rest: &[u8], lives: Duration) -> Result<(), StoreError> {
    let Attempt { purge, soft, .. } = attempt;
    let lives = lives.as_millis().to_string();
    let told = Message::purged(hub.sender, purge, *soft);
    let token = attempt.token.to_be_bytes();
    let before: Vec<_> = attempt.before.iter().map(|token| token.to_be_bytes()).collect();
    let channel = hub.names.channel();
    let mut arguments = vec![&token[..], flag(*soft), rest, lives.as_bytes(), &channel, &told, &token];
    arguments.extend(before.iter().map(|token| &token[..]));
    hub.redis.eval(&NAME, &[name], &arguments).await.map(drop)
}

async fn list(hub: &Hub, attempt: &Attempt) -> Result<(), StoreError> {
    let Attempt { purge, soft, .. } = attempt;
    let entry = |token| Entry { token, purge: purge.clone(), soft: *soft };
    let element = entry(attempt.token).encode();
    let told = Message { sender: hub.sender, news: News::Broad(entry(attempt.token)) }.encode();
    let before: Vec<_> = attempt.before.iter().map(|token| entry(*token).encode()).collect();
    // What came before a hard purge of everything is void by that alone.
    let alone = flag(purge.0 == What::Everything && !soft);
    let (length, channel) = (LENGTH.to_string(), hub.names.channel());
    let mut arguments = vec![&element[..], alone, length.as_bytes(), &channel, &told, &element];
    arguments.extend(before.iter().map(|element| &element[..]));
    hub.redis.eval(&LIST, &[&hub.names.broad()], &arguments).await.map(drop)
}

fn flag(flag: bool) -> &'static [u8] {
    if flag { b"1" } else { b"0" }
}
