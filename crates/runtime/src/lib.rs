//! What both Stillhouse binaries do alike.
//!
//! * [`clock`]: the time, which may be a simulation's.
//! * [`config`]: TOML tables layered over one another, read into typed settings; an unknown key is
//!   an error that suggests the nearest known one.
//! * [`telemetry`]: structured logs, and Prometheus metrics that are declared once.
//! * [`metrics_server`]: the HTTP listener that metrics are scraped from.
//! * [`lock`]: one process at a time in a folder.
//! * [`shutdown`]: the signals that end a process.
//! * [`exit`]: how a process ends, and what the exit codes mean.
//! * [`tls`]: a server's certificate, and who its clients are by theirs.
//! * [`traces`]: spans for an OpenTelemetry collector.
//! * [`watched`]: files that are read again when they change.
//! * [`tuning`]: what a `main` sets first, for speed.

pub mod clock;
pub mod config;
pub mod exit;
pub mod lock;
pub mod metrics_server;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod tuning;
pub mod watched;
