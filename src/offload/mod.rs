//! CPU-bound work off the event loop: a pool of threads behind a bounded queue, and a layer that runs a service on it.
//!
//! 1. **Own threads.** [`OffloadPool`] has plain threads, `offload-0` and up, that run nothing but what it was given.
//!    There is one less than the machine has cores (at least one), so one core's worth of time stays with the event
//!    loops. On a bare machine that matters little: with eight jobs of 2.4 s on two cores, and event loops that used a
//!    tenth of each core, a 5 ms timer was late by 2.9 ms (p99) with one thread and by 5.4 ms with two. But a pool that
//!    can spend the whole CPU quota of a container has the kernel stop the whole process until the next period, event
//!    loops included, and no thread priority helps against that. Give [`threads`](PoolBuilder::threads) to use all.
//! 2. **Two bounds.** At most [`queue`](PoolBuilder::queue) requests wait, whoever they are; at most
//!    [`in_flight`](PoolBuilder::in_flight) are admitted and not ended. Beyond either, a request is refused at once:
//!    503 with `Retry-After` from the layer, [`OffloadError::QueueFull`] from a closure.
//! 3. **First in, first out**, but what was woken after a suspension goes before what has not begun, and is never
//!    refused: it has been admitted once. After 16 such turns in a row one goes to what has not begun, so requests that
//!    yield again and again starve nobody.
//! 4. **A whole request moves.** [`OffloadLayer`] runs the inner service's `poll_ready`, `call` (so axum's extractors)
//!    and future on the pool, unmodified. Its tokio runtime, tracing span and route are entered for every turn, and a
//!    turn ends when tokio's cooperative budget is spent. While the future is pending, it holds no thread.
//! 5. **A request that is dropped while it waits never runs.** It leaves the queue at once and what it held is dropped
//!    with it. Once begun, it is dropped at its next suspension.
//! 6. **A panic ends one request.** It resumes in the task that awaits the response, where a `CatchPanicLayer` or hyper
//!    treats it as if there were no pool. A panic in a destructor that nobody awaits ends there. Threads survive both.
//! 7. **Data-parallel work has threads of its own.** [`install`](OffloadPool::install) runs a job in a rayon pool that
//!    runs no requests, one job at a time. Requests in a rayon pool would run on each other's stacks: a `join` that
//!    waits picks up whatever is queued, another request too, and finishes that first. An `install` inside of a job
//!    runs in its place, at once.
//!
//! It never stops synchronous code: a handler that computes for a minute has its thread for a minute, though its
//! client left after a second. Long computations should look at a flag of their own. It never offloads a streamed
//! response body, which the server polls on its event loop. It never joins a thread, so dropping a handle never blocks.
//!
//! **In the stack:** innermost, on the routes that compute. Limiter and cache stand outside, so that hits and refusals
//! stay on the event loop. A hop costs a few microseconds where the pool is busy, some tens where a thread has to be
//! woken: routes that only wait for others are better without.
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_scale::offload::{OffloadError, OffloadLayer, OffloadPool};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = OffloadPool::new()?;
//!
//! // Every handler of these routes, and its extractors, run on the pool.
//! let app = Router::new()
//!     .route("/", get(async || std::thread::current().name().unwrap_or_default().to_owned()))
//!     .layer(OffloadLayer::new(pool.clone()));
//! let response = app.oneshot(Request::new(Body::empty())).await?;
//! let thread = axum::body::to_bytes(response.into_body(), 99).await?;
//! assert!(thread.starts_with(b"offload-"));
//!
//! // One closure; one data-parallel job.
//! assert_eq!(pool.run(|| (1..=20_u64).product::<u64>()).await, Ok(2_432_902_008_176_640_000));
//! let (evens, odds) = pool.install(|| rayon::join(|| [0, 2, 4], || [1, 3, 5])).await?;
//! assert_eq!((evens.len(), odds.len()), (3, 3));
//!
//! pool.close();
//! assert_eq!(pool.run(|| ()).await, Err(OffloadError::Closed));
//! # Ok(())
//! # }
//! ```
//!
//! # Deployment
//!
//! The queue is memory and delay: a place holds a whole request, and the last in line waits for all before it. Set
//! `queue` to what clients will wait for, divided by the time one request takes, times `threads`. The pool knows no
//! deadlines. `threads` follows the CPU quota at the start of the process, not a later change of it.
//!
//! tokio's task-locals and task id do not follow a request to the pool. As on a tokio worker, a handler may not
//! `block_on` a runtime outside of `block_in_place`; a closure may.
//!
//! # Headers
//!
//! | header | on | meaning |
//! |---|---|---|
//! | `Retry-After` | 503 (`queue_full`, `pool_closed`) | 1 to 3 seconds, spread over clients |
//!
//! # Metrics
//!
//! | name | type | labels | meaning |
//! |---|---|---|---|
//! | `offload_requests_total` | counter | `outcome`: `completed`, `refused`, `cancelled`, `panicked` | requests and closures, by how they ended for their caller |
//! | `offload_queue_depth` | gauge | | wait for their first turn |
//! | `offload_active` | gauge | | have begun and not ended, running or suspended; a response body is no part of this |
//! | `offload_threads` | gauge | | threads that run requests and closures |
//! | `offload_wait_seconds` | histogram | | from admission to the first turn |
//! | `offload_run_seconds` | histogram | | on a thread, all turns together |
//!
//! Several pools add up in these figures. How busy the threads are, where nothing is given to
//! `install`: `rate(offload_run_seconds_sum) / offload_threads`.

mod body;
mod error;
mod future;
mod layer;
mod metrics;
mod pool;
mod queue;
mod service;
mod shared;
mod task;

pub use body::ResponseBody;
pub use error::{BuildError, OffloadError};
pub use future::{Offloaded, ResponseFuture};
pub use layer::OffloadLayer;
pub use pool::{OffloadPool, PoolBuilder};
pub use service::Offload;
