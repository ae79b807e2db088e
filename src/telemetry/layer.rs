use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Uri};
use tower_layer::Layer;

use super::readings::Readings;
use super::watch::LongPolls;
use super::{Memory, Telemetry};

pub(super) type Namer = Arc<dyn Fn(&Method, &Uri) -> &'static str + Send + Sync>;

/// Measures the event loop and memory, and blames long polls on their route. See the [module](super).
///
/// A runtime has one sampler, however many layers it has.
#[derive(Clone)]
pub struct TelemetryLayer {
    polls: Arc<LongPolls>,
    namer: Option<Namer>,
}

impl TelemetryLayer {
    /// Starts to sample the current Tokio runtime; outside of one, that of the first request.
    #[must_use]
    pub fn new() -> Self {
        let readings = Arc::<Readings>::default();
        readings.sample_here();
        Self { polls: Arc::new(LongPolls::new(readings)), namer: None }
    }

    /// Counts and logs polls that take at least `threshold`, 20 ms by default.
    #[must_use]
    pub fn long_poll(self, threshold: Duration) -> Self {
        Self { polls: Arc::new(self.polls.over(threshold)), ..self }
    }

    /// Names requests for which no router leaves a pattern, as with plain hyper. Behind an axum router the route's
    /// pattern is found without this, and wins.
    ///
    /// The name is a metric label: return one of a few, never a path.
    #[must_use]
    pub fn route(self, name: impl Fn(&Method, &Uri) -> &'static str + Send + Sync + 'static) -> Self {
        Self { namer: Some(Arc::new(name)), ..self }
    }

    /// The current readings, for code that acts on them.
    #[must_use]
    pub fn vitals(&self) -> Vitals {
        Vitals { readings: self.polls.readings().clone() }
    }
}

impl Default for TelemetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for TelemetryLayer {
    type Service = Telemetry<S>;

    fn layer(&self, inner: S) -> Telemetry<S> {
        Telemetry::new(inner, self.polls.clone(), self.namer.clone())
    }
}

impl fmt::Debug for TelemetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryLayer").field("vitals", &self.vitals()).finish_non_exhaustive()
    }
}

/// The vital signs of a runtime and its process, as last sampled: lag every 10 to 20 ms, memory every second.
///
/// Cheap to clone and to read. Sampling goes on as long as the layer, one of its services, or one of these lives, and
/// the runtime does.
#[derive(Clone)]
pub struct Vitals {
    readings: Arc<Readings>,
}

impl Vitals {
    /// The event-loop lag: the age of the longest stall in progress, else the delay of the last probe.
    #[must_use]
    pub fn lag(&self) -> Duration {
        self.readings.lag()
    }

    /// The largest event-loop lag of the last 60 s, stalls in progress included.
    #[must_use]
    pub fn lag_max(&self) -> Duration {
        self.readings.lag_max()
    }

    /// Memory in use, and the most that may be used.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.readings.memory()
    }
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals")
            .field("lag", &self.lag())
            .field("lag_max", &self.lag_max())
            .field("memory", &self.memory())
            .finish()
    }
}
