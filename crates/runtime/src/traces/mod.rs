//! Traces over OTLP, with the feature `otlp`: spans that a collector joins to one picture of a request, from
//! the student that asks to the batch that it rode in.
//!
//! Without the feature, or before [`start`], nothing is recorded and a [`Span`] costs nothing. Contexts
//! travel as `traceparent` of W3C Trace Context, <https://www.w3.org/TR/trace-context/#traceparent-header>.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// An OpenTelemetry collector that takes OTLP over gRPC, such as `http://collector:4317`; none: no
    /// traces. The binary must have been built with the feature `otlp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The part of the traces that begin here that is recorded, 0 to 1. Of one that another process
    /// began, that process decides; a batch is recorded if a request in it is.
    pub ratio: f64,
    /// Authorities of a collector with `https`, in PEM; none: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: None, ratio: 1.0, ca: None }
    }
}

impl Traces {
    /// Checks the values against their ranges, and the endpoint against what this binary can do.
    ///
    /// # Errors
    /// Names the first key that is out of its range, its value and the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(value("ratio", format!("is {}, expected 0 to 1", self.ratio)));
        }
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        // It would be told in errors and by the collector.
        if endpoint.contains('@') {
            let reason = "holds a name or a password, which OTEL_EXPORTER_OTLP_HEADERS is for";
            return Err(value("endpoint", reason.to_owned()));
        }
        let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with(['/', ':'])) {
            return Err(no_endpoint(endpoint, ""));
        }
        if self.ca.is_some() && !endpoint.starts_with("https://") {
            let reason = format!("is given, but {endpoint:?} is without https");
            return Err(value("ca", reason));
        }
        if cfg!(not(feature = "otlp")) {
            let reason = "but this binary was built without the feature `otlp`";
            return Err(value("endpoint", format!("is {endpoint:?}, {reason}")));
        }
        Ok(())
    }
}

fn no_endpoint(endpoint: &str, why: &str) -> ConfigError {
    let expected = "expected an address such as http://HOST:PORT";
    value("endpoint", format!("is {endpoint:?}, {expected}{why}"))
}

fn value(key: &str, reason: String) -> ConfigError {
    ConfigError::Value { key: format!("traces.{key}"), reason }
}

/// What a span is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Asks another process.
    Client,
    /// Answers another process.
    Server,
    /// Neither.
    Internal,
}

pub use imp::{Context, Span, start, stop};

#[cfg_attr(not(feature = "otlp"), path = "off.rs")]
#[cfg_attr(feature = "otlp", path = "otlp.rs")]
mod imp;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        let of = |endpoint: Option<&str>, ratio| {
            Traces { endpoint: endpoint.map(str::to_owned), ratio, ca: None }.validate()
        };
        of(None, 0.5).unwrap();
        for ratio in [-0.1, 1.1, f64::NAN] {
            let error = of(None, ratio).unwrap_err().to_string();
            assert_eq!(error, format!("traces.ratio: is {ratio}, expected 0 to 1"));
        }
        for endpoint in ["collector:4317", "http://", "grpc://collector:4317", ""] {
            let error = of(Some(endpoint), 1.0).unwrap_err().to_string();
            assert!(error.contains(&format!("is {endpoint:?}, expected an address")), "{error}");
        }
        for endpoint in ["https://user:secret@collector:4317", "user:secret@collector"] {
            let error = of(Some(endpoint), 1.0).unwrap_err().to_string();
            assert!(error.starts_with("traces.endpoint: holds"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let ca = Some("ca.crt".into());
        let there = Traces { endpoint: Some("http://collector".to_owned()), ca, ratio: 1.0 };
        assert!(there.validate().unwrap_err().to_string().starts_with("traces.ca: "));
        let there = of(Some("http://collector:4317"), 1.0);
        assert_eq!(there.is_ok(), cfg!(feature = "otlp"), "{there:?}");
    }
}
