//! Metric handles, resolved on first use and cached by the layer that owns them.
//!
//! 1. A name stands once in the source, as a [`Meter`] with its help text; `docs/metrics.md` lists them all.
//! 2. Handles are resolved when the first number is recorded, so a recorder may be installed before or after the
//!    layers are built. One installed after the first request sees only layers built, or first used, later.
//! 3. Without the feature `metrics` everything here is empty.
//!
//! Label values are closed sets or route patterns, never anything that a client can choose.

/// A metric's name and what it means.
#[derive(Clone, Copy)]
pub(crate) struct Meter {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
}

impl Meter {
    pub(crate) const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help }
    }
}

#[cfg(feature = "metrics")]
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $register:ident, $describe:ident) => {
        $(#[$doc])*
        pub(crate) struct $name {
            meter: Meter,
            handle: std::sync::OnceLock<$inner>,
        }

        impl $name {
            pub(crate) const fn new(meter: Meter) -> Self {
                Self { meter, handle: std::sync::OnceLock::new() }
            }

            fn handle(&self) -> &$inner {
                self.handle.get_or_init(|| {
                    metrics::$describe!(self.meter.name, self.meter.help);
                    metrics::$register!(self.meter.name)
                })
            }
        }
    };
}

#[cfg(not(feature = "metrics"))]
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $register:ident, $describe:ident) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl $name {
            pub(crate) const fn new(_: Meter) -> Self {
                Self
            }
        }
    };
}

handle!(
    /// Counts events.
    Counter, metrics::Counter, counter, describe_counter
);
handle!(
    /// A level that rises and falls.
    Gauge, metrics::Gauge, gauge, describe_gauge
);
handle!(
    /// A distribution, in seconds or bytes.
    Histogram, metrics::Histogram, histogram, describe_histogram
);

#[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
impl Counter {
    pub(crate) fn increment(&self, by: u64) {
        #[cfg(feature = "metrics")]
        self.handle().increment(by);
        #[cfg(not(feature = "metrics"))]
        let _ = by;
    }
}

/// Counts events of a closed set of kinds, told apart by one label. All of them are there, at zero, from the first event
/// on: a rate over a series that has just appeared would miss what made it appear.
pub(crate) struct Counters<const N: usize> {
    #[cfg(feature = "metrics")]
    meter: Meter,
    #[cfg(feature = "metrics")]
    label: (&'static str, [&'static str; N]),
    #[cfg(feature = "metrics")]
    handles: std::sync::OnceLock<[metrics::Counter; N]>,
}

#[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
impl<const N: usize> Counters<N> {
    pub(crate) const fn new(meter: Meter, key: &'static str, values: [&'static str; N]) -> Self {
        #[cfg(not(feature = "metrics"))]
        let _ = (meter, key, values);
        Self {
            #[cfg(feature = "metrics")]
            meter,
            #[cfg(feature = "metrics")]
            label: (key, values),
            #[cfg(feature = "metrics")]
            handles: std::sync::OnceLock::new(),
        }
    }

    /// Counts one event of the kind whose value stands at `index`.
    pub(crate) fn count(&self, index: usize) {
        #[cfg(feature = "metrics")]
        {
            let handles = self.handles.get_or_init(|| {
                metrics::describe_counter!(self.meter.name, self.meter.help);
                self.label.1.map(|value| metrics::counter!(self.meter.name, self.label.0 => value))
            });
            if let Some(counter) = handles.get(index) {
                counter.increment(1);
            }
        }
        #[cfg(not(feature = "metrics"))]
        let _ = index;
    }
}

/// A level of something that the application named in its source: the value of the one label.
pub(crate) struct Level {
    #[cfg(feature = "metrics")]
    meter: Meter,
    #[cfg(feature = "metrics")]
    label: (&'static str, &'static str),
    #[cfg(feature = "metrics")]
    handle: std::sync::OnceLock<metrics::Gauge>,
}

#[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
impl Level {
    pub(crate) const fn new(meter: Meter, key: &'static str, value: &'static str) -> Self {
        #[cfg(not(feature = "metrics"))]
        let _ = (meter, key, value);
        Self {
            #[cfg(feature = "metrics")]
            meter,
            #[cfg(feature = "metrics")]
            label: (key, value),
            #[cfg(feature = "metrics")]
            handle: std::sync::OnceLock::new(),
        }
    }

    pub(crate) fn set(&self, value: f64) {
        #[cfg(feature = "metrics")]
        {
            let handle = self.handle.get_or_init(|| {
                metrics::describe_gauge!(self.meter.name, self.meter.help);
                metrics::gauge!(self.meter.name, self.label.0 => self.label.1)
            });
            handle.set(value);
        }
        #[cfg(not(feature = "metrics"))]
        let _ = value;
    }
}

#[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
impl Gauge {
    pub(crate) fn increment(&self, by: f64) {
        #[cfg(feature = "metrics")]
        self.handle().increment(by);
        #[cfg(not(feature = "metrics"))]
        let _ = by;
    }

    pub(crate) fn decrement(&self, by: f64) {
        #[cfg(feature = "metrics")]
        self.handle().decrement(by);
        #[cfg(not(feature = "metrics"))]
        let _ = by;
    }
}

#[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
impl Histogram {
    pub(crate) fn record(&self, value: f64) {
        #[cfg(feature = "metrics")]
        self.handle().record(value);
        #[cfg(not(feature = "metrics"))]
        let _ = value;
    }
}
