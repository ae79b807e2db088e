//! One process of the fleet: this very test binary, which its environment tells to limit requests that it makes itself.
//! So what is measured is the layer, and the way to Redis, and nothing else.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncBufReadExt;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::MissedTickBehavior;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{Fallback, Lease, Quota, RateLimitLayer, Subject};
use tower_scale::redis::Redis;

/// What makes a process one of the fleet: its [`Settings`].
pub(super) const SETTINGS: &str = "RATE_LIMIT_FLEET";
pub(super) const NAME: &str = "rate_limit_fleet::instance::serve";
/// What each answer begins with, in the midst of the test harness's own words.
pub(super) const ANSWER: &str = "@ ";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    /// Per second, and at once.
    pub(super) quota: (u32, u32),
    pub(super) budget: Duration,
    /// Of the fallback; none: it refuses.
    pub(super) share: Option<f64>,
    pub(super) lease: Option<(u32, Duration)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Requests of each client, so far apart, until [`Stop`](Self::Stop).
    Load {
        clients: Vec<IpAddr>,
        every: Duration,
    },
    Stop,
    Block(IpAddr, Duration),
    Reset(IpAddr),
    SetQuota(u32, u32),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// With what it takes for the time of day.
    Ready(Duration),
    /// Whether it could be done.
    Done(bool),
    Made(Vec<Made>),
}

/// A request, and what became of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) client: IpAddr,
    /// Microseconds of the machine's monotonic clock, the same for all processes.
    pub(super) begun: u64,
    pub(super) ended: u64,
    /// By how much the process was late to make it.
    pub(super) late: u64,
    pub(super) status: u16,
    /// How many requests per second its response announces.
    pub(super) announced: Option<u32>,
    /// Whether some request that ended by then was decided without Redis, since the one before.
    pub(super) degraded: bool,
}

/// Not a test, unless it is told to be an instance.
#[test]
fn serve() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let settings: Settings = serde_json::from_str(&settings).unwrap();
    let recorder = DebuggingRecorder::new();
    let degraded = Degraded { snapshotter: recorder.snapshotter() };
    recorder.install().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, Instance::new(&settings, degraded).serve());
}

struct Instance {
    layer: RateLimitLayer,
    degraded: Rc<Degraded>,
    made: Rc<RefCell<Vec<Made>>>,
    load: Option<JoinHandle<()>>,
}

impl Instance {
    fn new(settings: &Settings, degraded: Degraded) -> Self {
        let redis = redis().time_budget(settings.budget);
        let fallback = settings.share.map_or(Fallback::refuse(), Fallback::share);
        let mut layer = RateLimitLayer::new(quota(settings.quota)).redis(redis).fallback(fallback);
        if let Some((tokens, life)) = settings.lease {
            layer = layer.lease(Lease::new(tokens, life));
        }
        Self { layer, degraded: Rc::new(degraded), made: Rc::default(), load: None }
    }

    /// Until nobody gives commands any more.
    async fn serve(mut self) {
        answer(&Answer::Ready(SystemTime::now().duration_since(UNIX_EPOCH).unwrap()));
        let mut commands = tokio::io::BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(command)) = commands.next_line().await {
            let handle = self.layer.handle();
            answer(&match serde_json::from_str(&command).unwrap() {
                Command::Load { clients, every } => {
                    self.load = Some(tokio::task::spawn_local(self.clone_for_load().run(clients, every)));
                    Answer::Done(true)
                }
                Command::Stop => {
                    self.load.take().expect("a load").abort();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Answer::Made(self.made.take())
                }
                Command::Block(client, time) => Answer::Done(handle.block(&Subject::ip(client), time).await.is_ok()),
                Command::Reset(client) => Answer::Done(handle.reset(&Subject::ip(client)).await.is_ok()),
                Command::SetQuota(rate, burst) => {
                    Answer::Done(handle.set_quota("default", quota((rate, burst))).await.is_ok())
                }
            });
        }
    }

    fn clone_for_load(&self) -> Load {
        Load { layer: self.layer.clone(), degraded: self.degraded.clone(), made: self.made.clone() }
    }
}

#[derive(Clone)]
struct Load {
    layer: RateLimitLayer,
    degraded: Rc<Degraded>,
    made: Rc<RefCell<Vec<Made>>>,
}

impl Load {
    async fn run(self, clients: Vec<IpAddr>, every: Duration) {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let late = ticks.tick().await.elapsed();
            for client in &clients {
                tokio::task::spawn_local(self.clone().make(*client, late));
            }
        }
    }

    async fn make(self, client: IpAddr, late: Duration) {
        let handler = service_fn(|_: Request<Full<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        });
        let service = self.layer.layer(handler);
        let peer = PeerAddr(SocketAddr::new(client, 4711));
        let request = Request::builder().extension(peer).body(Full::default()).unwrap();
        let begun = clock();
        let response = service.oneshot(request).await.unwrap();
        let ended = clock();
        let policy = response.headers().get("ratelimit-policy").and_then(|policy| policy.to_str().ok());
        let announced = policy.and_then(|policy| policy.split(";q=").nth(1)?.split(';').next()?.parse().ok());
        let (late, status) = (late.as_micros().try_into().unwrap(), response.status().as_u16());
        let degraded = self.degraded.since_last();
        self.made.borrow_mut().push(Made { client, begun, ended, late, status, announced, degraded });
    }
}

/// What the limiter counts.
struct Degraded {
    snapshotter: Snapshotter,
}

impl Degraded {
    fn since_last(&self) -> bool {
        self.snapshotter.snapshot().into_vec().into_iter().any(|(key, .., value)| {
            let is_degraded = key.key().labels().any(|label| label.value().ends_with("_degraded"));
            is_degraded && matches!(value, DebugValue::Counter(count) if count > 0)
        })
    }
}

fn quota((rate, burst): (u32, u32)) -> Quota {
    Quota::per_second(rate).burst(burst)
}

fn answer(answer: &Answer) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{ANSWER}{}", serde_json::to_string(answer).unwrap()).unwrap();
    out.flush().unwrap();
}

/// As in `examples/fleet.rs`.
fn redis() -> Redis {
    let list = |name| std::env::var(name).ok().map(|urls| urls.split(',').map(str::to_owned).collect::<Vec<_>>());
    if let Some(urls) = list("REDIS_CLUSTER") {
        let manager = deadpool_redis::cluster::Manager::new(urls, false).unwrap();
        return Redis::from_cluster_pool(deadpool_redis::cluster::Pool::builder(manager).build().unwrap()).unwrap();
    }
    if let Some(urls) = list("REDIS_SENTINEL") {
        use deadpool_redis::sentinel::{Manager, Pool, SentinelServerType};
        let service = std::env::var("REDIS_SERVICE").unwrap();
        let manager = Manager::new(urls, service, None, SentinelServerType::Master).unwrap();
        return Redis::from_sentinel_pool(Pool::builder(manager).build().unwrap()).unwrap();
    }
    Redis::connect(&std::env::var("REDIS_URL").unwrap()).unwrap()
}

/// Microseconds since the machine was started.
#[allow(unsafe_code, reason = "std does not show the monotonic clock's number, by which processes can be compared")]
pub(super) fn clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and `now` outlives the call.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) }, 0);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000).unwrap()
}
