//! Everything at once, for a while: readers who come and go, purges of all kinds, edits, and Redis and processes that
//! freeze, die and come back. Each answer is held against what [`permission`](super::permission) allows.
//!
//! `SOAK_SECONDS` (8) says for how long, `SOAK_SEED` what happens in it: what is done is decided by the seed, when it
//! takes effect by the machine.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use http::StatusCode;

use super::permission::{Bounds, History, Order, Seen, Time, Told, Trouble, Wrong};
use super::{Fleet, INSTANCES};
use crate::support::eventually;
use crate::support::example::{Answer, HttpClient, http_client};
use crate::support::fleet::{Instance, SITE, Servers, Setup};
use crate::support::random::{Random, Zipf};
use crate::support::shop::{Asked, Content, MADE, NOBODY, Page, Shop, VERSION};

const KEYS: usize = 120;
const CLIENTS: u64 = 16;
const USERS: [&str; 6] = [NOBODY, NOBODY, NOBODY, NOBODY, "alice", "bob"];
const LANGUAGES: [&str; 3] = ["en", "fr", "de"];
const MEMORY_BYTES: &str = "4000000";
/// Of one process: its code, 4 MB of responses, what is in flight, and what remembers purges.
const RESIDENT: u64 = 160 << 20;

const MILLISECOND: Time = 1_000;
const SECOND: Time = 1_000 * MILLISECOND;
const BOUNDS: Bounds = Bounds {
    // What is promised is a tenth; the rest is for a machine on which twelve processes share two cores. Most answers are
    // held to the promise: see `Arena::judge`.
    near: SECOND,
    away: 7 * SECOND,
    told: 4 * SECOND,
    slack: SECOND / 2,
};
const PROMISED: Bounds = Bounds { near: 100 * MILLISECOND, ..BOUNDS };
/// After Redis is there again, until all processes have found that out.
const COMES_BACK: Time = 4 * SECOND;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Freeze,
    Kill,
    Flush,
    /// Redis closes the connections that listen.
    CutOff,
    LoseProcess,
    FailOver,
}

impl Fault {
    const MASTERS: &[Self] = &[Self::Freeze, Self::Kill, Self::CutOff, Self::Flush, Self::LoseProcess];
    const REPLICA: &[Self] = &[Self::FailOver, Self::CutOff, Self::Flush, Self::LoseProcess];
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standalone() {
    soak(Setup::Standalone, Fault::MASTERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster() {
    soak(Setup::Cluster, Fault::MASTERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel() {
    soak(Setup::Sentinel, Fault::REPLICA).await;
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

fn path(key: usize) -> String {
    format!("/{}/{key}", key % 10)
}

/// What every tenth page is like.
fn page(asked: &Asked<'_>) -> Page {
    let mut parts = asked.path.split('/').skip(1);
    let (kind, key) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let signed_in = asked.user() != NOBODY;
    let page = match kind {
        "0" => Page::new("max-age=1"),
        "1" => Page::new("max-age=60"),
        "2" => Page::new("max-age=1, stale-while-revalidate=2"),
        "3" => Page::new("max-age=5").field("vary", "accept-language"),
        "4" if signed_in => Page::new("private, max-age=60").personal(),
        "4" => Page::new("max-age=5").personal(),
        // It depends on the user, and nobody said so.
        "5" => Page::new("max-age=60").personal(),
        "6" => Page::new("public, max-age=30"),
        "7" if asked.version % 2 == 1 => Page::new("no-store"),
        "7" => Page::new("max-age=30"),
        "8" => Page::new("max-age=1").field("etag", &format!("\"{}\"", asked.version)),
        _ => Page::new("max-age=10").padding(100_000),
    };
    page.field("cache-tag", &format!("kind-{kind},key-{key}")).delay(Duration::from_millis(asked.calls as u64 % 5 * 10))
}

/// All that the actors share.
struct Arena {
    shop: Arc<Shop>,
    instances: RwLock<Vec<Arc<Instance>>>,
    client: HttpClient,
    known: Mutex<Known>,
    wrong: Mutex<Vec<String>>,
    stop: AtomicBool,
    answers: AtomicU64,
    late: AtomicU64,
    resident: AtomicU64,
}

struct Known {
    history: History,
    /// For each key, in the order of their issue.
    orders: Vec<Vec<Order>>,
}

impl Arena {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic")
    }

    fn instance(&self, number: usize) -> Arc<Instance> {
        self.instances.read().expect("no panic")[number].clone()
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn complain(&self, what: String) {
        self.wrong.lock().expect("no panic").push(what);
    }

    fn order(&self, keys: impl IntoIterator<Item = usize>, order: Order) {
        let mut known = self.known();
        for key in keys {
            let orders = &mut known.orders[key];
            let at = orders.partition_point(|other| other.issued <= order.issued);
            orders.insert(at, order);
        }
    }

    /// Redis is away from now on. Returns what to tell [`recovers`](Self::recovers).
    fn troubles(&self, loses: bool) -> usize {
        let mut known = self.known();
        known.history.troubles.push(Trouble { from: self.shop.now(), to: None, loses });
        known.history.troubles.len() - 1
    }

    fn recovers(&self, trouble: usize) {
        let to = self.shop.now() + COMES_BACK;
        self.known().history.troubles[trouble].to = Some(to);
    }

    /// One who asks once, and may not wait for the answer.
    async fn read(&self, key: usize, random: &mut Random) {
        let (user, language) = (USERS[random.below(USERS.len())], LANGUAGES[random.below(LANGUAGES.len())]);
        let (instance, path) = (self.instance(random.below(INSTANCES)), path(key));
        let cookie = format!("user={user}");
        let mut headers = vec![("accept-language", language.as_bytes())];
        if user != NOBODY {
            headers.push(("cookie", cookie.as_bytes()));
        }
        let patience = Duration::from_millis(if random.chance(5) { random.between(0, 30) } else { 20_000 });
        let asked = self.shop.now();
        let answer = instance.example.send_by(&self.client, "GET", &path, &headers, "");
        let Ok(answer) = tokio::time::timeout(patience, answer).await else { return };
        match answer {
            Ok(answer) => self.judge(key, instance.process, asked, &answer, (user, language)),
            Err(error) => {
                let gone = self.known().history.ended.iter().any(|(process, _)| *process == instance.process);
                if !gone {
                    self.complain(format!("{path}: no answer: {error}"));
                }
            }
        }
    }

    fn judge(&self, key: usize, process: u32, asked: Time, answer: &Answer, reader: (&str, &str)) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        let content = Content::of(&answer.body).filter(|_| answer.status == StatusCode::OK);
        let Some(content) = content else { return self.complain(format!("no page: {answer:.200?}")) };
        let seen = seen(process, asked, answer, &content, reader);
        // A body is not given the fields of another version.
        if answer.header(VERSION) != content.version.to_string() {
            self.complain(format!("mixed: {answer:.400?}"));
        }
        let (path, status) = (&content.path, answer.header("cache-status"));
        let known = self.known();
        let judged = known.history.judge(&seen, &known.orders[key], BOUNDS);
        if let Err(wrong) = judged {
            let orders: Vec<_> = known.orders[key].iter().filter(|order| order.issued > seen.made).collect();
            let troubles = &known.history.troubles;
            self.complain(format!("{wrong:?} {path} {status}: {seen:?}, {orders:?}, {troubles:?}"));
        } else if let Err(Wrong::Purged(_)) = known.history.judge(&seen, &known.orders[key], PROMISED) {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn reader(&self, mut random: Random) {
        let zipf = Zipf::new(u32::try_from(KEYS).expect("few"), 1.0);
        while self.goes_on() {
            let key = zipf.pick(&mut random);
            match random.chance(1) {
                true => self.edit(key, &mut random).await,
                false => self.read(key, &mut random).await,
            }
            tokio::time::sleep(Duration::from_millis(random.between(4, 20))).await;
        }
    }

    /// An unsafe request that succeeds takes back what its URL had.
    async fn edit(&self, key: usize, random: &mut Random) {
        let (instance, issued) = (self.instance(random.below(INSTANCES)), self.shop.now());
        let answer = instance.example.send_by(&self.client, "POST", &path(key), &[], "").await;
        if answer.is_ok_and(|answer| answer.status == StatusCode::NO_CONTENT) {
            let (process, done) = (instance.process, self.shop.now());
            self.order([key], Order { issued, done, process, told: Told::Presumed, soft: false });
        }
    }

    async fn purger(&self, mut random: Random) {
        while self.goes_on() {
            let (mut query, keys) = a_purge(&mut random);
            let soft = random.chance(33);
            query.push_str(if soft { "&soft" } else { "" });
            let (instance, issued) = (self.instance(random.below(INSTANCES)), self.shop.now());
            let target = format!("/-/purge?{query}");
            if let Ok(answer) = instance.example.send_by(&self.client, "POST", &target, &[], "").await {
                let told = match answer.status {
                    StatusCode::NO_CONTENT => Told::Yes,
                    StatusCode::ACCEPTED => Told::No,
                    _ => return self.complain(format!("{query}: {answer:?}")),
                };
                self.order(keys, Order { issued, done: self.shop.now(), process: instance.process, told, soft });
            }
            tokio::time::sleep(Duration::from_millis(random.between(40, 160))).await;
        }
    }

    async fn watch(&self) {
        while self.goes_on() {
            for number in 0..INSTANCES {
                self.resident.fetch_max(self.instance(number).example.resident(), Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Ends a process as a crash would, and starts another in its place.
    async fn replace(&self, number: usize, servers: &Servers, pause: Duration) {
        let lost = self.instance(number);
        self.known().history.ended.push((lost.process, self.shop.now()));
        lost.example.kill();
        tokio::time::sleep(pause).await;
        let next = Arc::new(Instance::start(&self.shop.url(), servers, &[("MEMORY_BYTES", MEMORY_BYTES)]));
        self.instances.write().expect("no panic")[number] = next;
    }

    async fn suffer(&self, fault: Fault, servers: &mut Servers, random: &mut Random, most: u64) {
        let pause = Duration::from_millis(random.between(100, most));
        let number = random.below(servers.masters().len());
        eprintln!("{:>6} ms: {fault:?} of {number} for {pause:?}", self.shop.now() / MILLISECOND);
        match fault {
            Fault::Flush => servers.flush(),
            Fault::LoseProcess => self.replace(random.below(INSTANCES), servers, pause).await,
            Fault::Freeze | Fault::Kill | Fault::CutOff | Fault::FailOver => {
                let trouble = self.troubles(matches!(fault, Fault::FailOver));
                match (fault, &mut *servers) {
                    (Fault::FailOver, Servers::Sentinel(servers)) => {
                        tokio::task::block_in_place(|| servers.fail_over());
                    }
                    (Fault::CutOff, servers) => servers.cut_off(),
                    (Fault::Freeze, servers) => {
                        servers.masters()[number].freeze();
                        tokio::time::sleep(pause).await;
                        servers.masters()[number].thaw();
                    }
                    (_, servers) => {
                        servers.masters()[number].kill();
                        tokio::time::sleep(pause).await;
                        tokio::task::block_in_place(|| servers.masters()[number].launch());
                    }
                }
                self.recovers(trouble);
            }
        }
    }
}

/// Some purge, and the keys that it names.
fn a_purge(random: &mut Random) -> (String, Vec<usize>) {
    let key = random.below(KEYS);
    let keys = |named: &dyn Fn(usize) -> bool| (0..KEYS).filter(|other| named(*other)).collect();
    match random.below(80) {
        0 => ("everything".to_owned(), keys(&|_| true)),
        1..=2 => (format!("tag=kind-{}", key % 10), keys(&|other| other % 10 == key % 10)),
        3..=22 => (format!("tag=key-{key}"), vec![key]),
        23..=42 => {
            let start = path(key);
            (format!("prefix={SITE}{start}"), keys(&|other| path(other).starts_with(&start)))
        }
        _ => (format!("url={SITE}{}", path(key)), vec![key]),
    }
}

fn seen(process: u32, asked: Time, answer: &Answer, content: &Content, reader: (&str, &str)) -> Seen {
    let control = answer.header("cache-control");
    let seconds = |name: &str| {
        let value = control.split(", ").find_map(|directive| directive.strip_prefix(name)?.strip_prefix('='));
        value.map_or(0, |value| value.parse::<Time>().expect("a number") * SECOND)
    };
    let kept = !control.contains("private");
    let someone = |user: &str| (user != NOBODY).then(|| user.to_owned());
    Seen {
        process,
        asked,
        // What confirms a response makes it anew.
        made: answer.header(MADE).parse().expect("the shop says when"),
        lifetime: if kept { seconds("max-age") } else { 0 },
        grace: seconds("stale-while-revalidate"),
        age: answer.header("age").parse().ok(),
        content: (someone(&content.user), content.language.clone()),
        reader: (someone(reader.0), if content.language.is_empty() { String::new() } else { reader.1.to_owned() }),
    }
}

async fn soak(setup: Setup, faults: &[Fault]) {
    let seconds = number("SOAK_SECONDS").unwrap_or(8);
    let random_seed = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let seed = number("SOAK_SEED").unwrap_or_else(random_seed);
    eprintln!("{setup:?}: SOAK_SEED={seed} SOAK_SECONDS={seconds}");
    let mut random = Random::new(seed);
    let mut fleet = Fleet::start(setup, &[("MEMORY_BYTES", MEMORY_BYTES)], Shop::start(page).await).await;
    let arena = Arc::new(Arena {
        shop: fleet.shop.clone(),
        instances: RwLock::new(std::mem::take(&mut fleet.instances)),
        client: http_client(),
        known: Mutex::new(Known { history: History::default(), orders: vec![Vec::new(); KEYS] }),
        wrong: Mutex::default(),
        stop: AtomicBool::new(false),
        answers: AtomicU64::new(0),
        late: AtomicU64::new(0),
        resident: AtomicU64::new(0),
    });
    let mut actors = Vec::new();
    for _ in 0..CLIENTS {
        let (arena, random) = (arena.clone(), Random::new(random.next()));
        actors.push(tokio::spawn(async move { arena.reader(random).await }));
    }
    let (purging, watching, chance) = (arena.clone(), arena.clone(), Random::new(random.next()));
    actors.push(tokio::spawn(async move { purging.purger(chance).await }));
    actors.push(tokio::spawn(async move { watching.watch().await }));

    // Each fault in turn, with time between them in which all is well; in a long run one that is long.
    let end = seconds * SECOND;
    let first = random.below(faults.len());
    for turn in 0.. {
        tokio::time::sleep(Duration::from_millis(random.between(1_000, 2_500))).await;
        if arena.shop.now() >= end {
            break;
        }
        let most = if turn % 8 == 7 { 9_000 } else { 1_500 };
        arena.suffer(faults[(first + turn) % faults.len()], &mut fleet.servers, &mut random, most).await;
        let settled = turn % 2 == 1;
        if settled {
            tokio::time::sleep(Duration::from_micros(COMES_BACK.min(end / 4))).await;
        }
    }
    arena.stop.store(true, Ordering::Relaxed);
    for actor in join_all(actors).await {
        actor.expect("no actor panics");
    }
    conclude(Arc::into_inner(arena).expect("all have ended"), &fleet.shop).await;
}

/// What is left when all have gone.
async fn conclude(arena: Arena, shop: &Shop) {
    let (answers, late) = (arena.answers.into_inner(), arena.late.into_inner());
    let known = arena.known.into_inner().expect("no panic");
    let orders: usize = known.orders.iter().map(Vec::len).sum();
    let resident = arena.resident.into_inner();
    eprintln!(
        "{answers} answers, {} requests to the origin, {orders} orders by key; {late} answers later than promised; {} MiB",
        shop.all_calls(),
        resident >> 20,
    );
    let wrong = arena.wrong.into_inner().expect("no panic");
    assert!(wrong.is_empty(), "{} wrong answers, the first: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(late * 200 <= answers, "{late} of {answers} answers came later than promised after a purge");
    assert!(resident <= RESIDENT, "{} MiB", resident >> 20);
    drop(arena.client);
    for instance in arena.instances.into_inner().expect("no panic") {
        let example = &instance.example;
        eventually("nothing is left under way", async || {
            let (fills, waiters) =
                (example.metric("cache_fills_in_flight").await, example.metric("cache_waiters").await);
            fills.unwrap_or(0.0) == 0.0 && waiters.unwrap_or(0.0) == 0.0
        })
        .await;
        // Listener, runtime, Redis, and connections that stay open for a while.
        eventually("all clients' connections are closed", async || example.open_files() < 40).await;
    }
}
