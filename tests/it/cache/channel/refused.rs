//! A Redis that answers, and refuses: it is full, or may not be told.

use super::*;

/// Full for good: whatever is freed, it stays above its limit, and evicts nothing.
fn fill(server: &RedisServer, full: bool) {
    assert!(server.command(&["CONFIG", "SET", "maxmemory", if full { "1" } else { "0" }]).starts_with("+OK"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_takes_every_purge() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]);
    let (one, other, _) = pair(&server, MINUTE);
    let kept = "for _, k in ipairs(redis.call('KEYS', '*}g')) do
        return redis.call('PTTL', k) > 3000000 and string.byte(redis.call('GET', k), 33)
    end";
    let purges = [url("/a"), Purge::tag("tag").unwrap(), Purge::prefix("http://shop.example/").unwrap()];
    for (round, purge) in purges.iter().chain([&Purge::everything()]).cycle().take(8).enumerate() {
        let old = agree(&one, &other, "/a", &[&server]).await;
        eventually("stored in Redis", async || server.command(&["EVAL", kept, "0"]) == ":1\r\n").await;
        fill(&server, true);
        assert!(server.command(&["SET", "x", "y"]).starts_with("-OOM"));
        let purging = if round < 4 { one.handle.purge(purge) } else { one.handle.soft_purge(purge) };
        assert_eq!(purging.await, Ok(()), "{purge:?}");
        eventually("purged", async || {
            let answer = other.get("/a").await;
            is_stale(&answer) || answer.text() != old
        })
        .await;
        assert_eq!(server.command(&["EVAL", kept, "0"]), ":1\r\n", "marked, and for as long: {purge:?}");
        fill(&server, false);
        eventually("fetched anew", async || one.get("/a").await.text() != old).await;
    }
    let old = agree(&one, &other, "/a", &[&server]).await;
    fill(&server, true);
    send(&one.cache, request(Method::POST, "/a", &[])).await;
    eventually("changed", async || other.get("/a").await.text() != old).await;
    assert_eq!(server.command(&["EVAL", kept, "0"]), ":1\r\n");
}

/// Other data has filled it: the list of purges begins all the same, or nothing could be looked up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_always_full_is_asked_all_the_same() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "noeviction", "--maxmemory", "1"]);
    let (one, other, origin) = pair(&server, MINUTE);
    eventually("both listen", async || {
        one.get("/a").await;
        other.get("/a").await;
        listeners(&server) == 2 && server.command(&["EXISTS", "ts:cache:{gens}broad"]) == ":1\r\n"
    })
    .await;
    assert_eq!(one.handle.purge(&url("/a")).await, Ok(()));
    let calls = origin.calls();
    one.get("/a").await;
    assert!(one.get("/a").await.is_hit() && origin.calls() == calls + 1, "memory holds it");
}

/// The name of what was purged holds something else: Redis refuses that purge as long as it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_that_waits_voids_nothing_else() {
    let server = RedisServer::start();
    let one = Process::plain(patient(&server), &origin());
    eventually("stored", async || one.get("/a").await.is_hit()).await;
    let break_it =
        "for _, k in ipairs(redis.call('KEYS', '*}g')) do redis.call('DEL', k) redis.call('RPUSH', k, 'x') end";
    server.command(&["EVAL", break_it, "0"]);
    assert!(one.handle.purge(&url("/a")).await.is_err());
    for purge in [url("/b"), Purge::tag("tag").unwrap(), Purge::everything()] {
        assert_eq!(one.handle.purge(&purge).await, Ok(()));
        eventually("stored once more", async || one.get("/b").await.is_hit()).await;
    }
    assert!(!one.get("/a").await.is_hit());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_does_not_ask_all_the_time() {
    for refusal in [
        &["ACL", "SETUSER", "default", "-publish"][..],
        &["ACL", "SETUSER", "default", "-eval", "-evalsha"],
        &["ACL", "SETUSER", "default", "resetchannels"],
        &["ACL", "SETUSER", "default", "-lindex"],
        &["REPLICAOF", "127.0.0.1", "1"],
    ] {
        let server = RedisServer::start();
        let one = Process::tiered(patient(&server), &origin(), MINUTE);
        one.in_memory("/a", &[&server]).await;
        assert!(server.command(refusal).starts_with("+OK"));
        server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let purges = [url("/a"), Purge::tag("tag").unwrap(), Purge::everything()].map(|purge| one.handle.purge(&purge));
        for purge in purges {
            assert!(purge.await.is_err() || refusal.contains(&"-lindex"), "{refusal:?}");
        }
        let asked = || {
            let stats = server.command(&["INFO", "stats"]);
            let number =
                |name: &str| stats.split(name).nth(1).unwrap().split_whitespace().next().unwrap().parse::<u64>();
            ["total_commands_processed:", "total_connections_received:", "total_error_replies:"]
                .map(|name| number(name).unwrap())
                .iter()
                .sum::<u64>()
        };
        let (before, begun) = (asked(), Instant::now());
        eventually("a while", async || begun.elapsed() > Duration::from_secs(1)).await;
        let asked = asked() - before;
        assert!(asked < 200, "{refusal:?}: {asked} commands, connections and errors in a second");
    }
}
