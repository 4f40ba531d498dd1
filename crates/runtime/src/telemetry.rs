//! Structured logs, and metrics that are declared once.

use std::time::Duration;

use metrics::{SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person: `time level message key=value`.
    #[default]
    Text,
    /// For a collector: one JSON object a line.
    Json,
}

/// Why telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error(
        "log.level: {value:?} is not a filter such as `info` or `info,teacher_server=debug`: {reason}"
    )]
    Filter {
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else in this process logs or measures already.
    #[error("telemetry was started twice: {0}")]
    Twice(String),
    /// A histogram's buckets are no buckets.
    #[error("metric {name}: {reason}")]
    Buckets {
        /// The metric.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Starts logging to standard error.
///
/// # Errors
/// If the filter does not parse, or logging was started before.
pub fn start_logs(level: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(level).map_err(|error| TelemetryError::Filter {
        value: level.to_owned(),
        reason: error.to_string(),
    })?;
    let logs = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Where they cannot be written, saying so there would panic.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            logs.with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| TelemetryError::Twice(error.to_string()))
}

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution over buckets with these upper bounds.
    Histogram(&'static [f64]),
}

/// A metric as its dashboard and its alerts know it. Declared once, registered at start, so that
/// it can be scraped before the first request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// `<namespace>_<name>_<unit>[_total]`, in base units.
    pub name: &'static str,
    /// What it counts.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// One sentence for the operator.
    pub help: &'static str,
    /// The label sets that are registered at start: one entry per series. Empty: one series
    /// without labels.
    pub series: &'static [&'static [(&'static str, &'static str)]],
}

/// The process's metrics.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the process's recorder and registers every metric of the catalogue with value 0.
    ///
    /// # Errors
    /// If a recorder is installed already, or a histogram has no buckets.
    pub fn install(catalogue: &[Metric]) -> Result<Self, TelemetryError> {
        let mut builder = PrometheusBuilder::new();
        for metric in catalogue {
            if let Kind::Histogram(bounds) = metric.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)
                    .map_err(|error| TelemetryError::Buckets {
                        name: metric.name,
                        reason: error.to_string(),
                    })?;
            }
        }
        let handle =
            builder.install_recorder().map_err(|error| TelemetryError::Twice(error.to_string()))?;
        catalogue.iter().for_each(register);
        Ok(Self(handle))
    }

    /// The metrics as Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Moves what histograms have buffered into their buckets; without it memory grows between two
    /// scrapes. Runs until dropped.
    pub async fn upkeep(self) {
        let mut every = tokio::time::interval(Duration::from_secs(5));
        loop {
            every.tick().await;
            self.0.run_upkeep();
        }
    }
}

fn register(metric: &Metric) {
    let help = SharedString::const_str(metric.help);
    match metric.kind {
        Kind::Counter => metrics::describe_counter!(metric.name, metric.unit, help),
        Kind::Gauge => metrics::describe_gauge!(metric.name, metric.unit, help),
        Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.unit, help),
    }
    let unlabelled: &[&[(&str, &str)]] = &[&[]];
    let series = if metric.series.is_empty() { unlabelled } else { metric.series };
    for labels in series {
        match metric.kind {
            Kind::Counter => metrics::counter!(metric.name, *labels).absolute(0),
            Kind::Gauge => metrics::gauge!(metric.name, *labels).set(0.0),
            // Registers the series; a histogram without a sample still exports its buckets.
            Kind::Histogram(_) => drop(metrics::histogram!(metric.name, *labels)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_show_before_the_first_event() {
        const CATALOGUE: &[Metric] = &[
            Metric {
                name: "test_events_total",
                kind: Kind::Counter,
                unit: Unit::Count,
                help: "Events.",
                series: &[&[("kind", "a")], &[("kind", "b")]],
            },
            Metric {
                name: "test_wait_seconds",
                kind: Kind::Histogram(&[0.1, 1.0]),
                unit: Unit::Seconds,
                help: "Wait.",
                series: &[],
            },
        ];
        let text = Metrics::install(CATALOGUE).unwrap().render();
        for line in [
            "# HELP test_events_total Events.",
            "test_events_total{kind=\"a\"} 0",
            "test_events_total{kind=\"b\"} 0",
            "test_wait_seconds_bucket{le=\"1\"} 0",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = start_logs("teacher=loud", LogFormat::Text).unwrap_err();
        assert!(error.to_string().contains("teacher=loud"), "{error}");
    }
}
