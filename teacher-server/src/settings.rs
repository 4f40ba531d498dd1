//! What a server is told: defaults < file < environment < flags.

#[cfg(test)]
mod documented;
mod folders;
mod validate;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use stillhouse_runtime::{telemetry::LogFormat, tls::ServerTls, traces::Traces};

use crate::ensemble::Rule;

/// The contract's limit on temperatures in one request.
pub const MAX_TEMPERATURES: u32 = 8;

/// Settings of a teacher server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Folder with `config.json` and `model.safetensors`; a list of 2 to 64 of them answers as one
    /// teacher.
    #[serde(with = "folders")]
    pub model: Vec<PathBuf>,
    /// How the distributions of several models become one, for requests that do not say. Plays no
    /// part with one model.
    pub ensemble: Rule,
    /// Name that `Describe` answers with, at most 256 bytes; empty: the model folders' names.
    pub name: String,
    /// Address of the gRPC service. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address that metrics are scraped from, at `/metrics`, and of the status page, at `/`; none: no
    /// listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Where other replicas' metrics are, such as `http://teacher-1:9090`: their caches are shown on this
    /// one's status page. The browser that shows it must reach them.
    pub status_peers: Vec<String>,
    /// Address of a plaintext listener that answers `grpc.health.v1` and nothing else, for probes that
    /// have no certificate; none: no such listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_listen: Option<SocketAddr>,
    /// List of the clients that may ask, and for what (`docs/security.md`); none: everybody may ask for
    /// everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_file: Option<PathBuf>,
    /// How often certificates and the list of clients are looked at for changes, in seconds, 0.05 to
    /// 3600.
    pub reload_seconds: f64,
    /// What computes the labels.
    pub device: Device,
    /// Certificate and key of the gRPC service; none: plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// What one request, message or stream may carry.
    pub limits: Limits,
    /// How requests become batches.
    pub batching: Batching,
    /// What is kept of what the models computed.
    pub cache: Cache,
    /// Shares and quotas of clients, by name; `default` are those of all that are not named.
    pub clients: BTreeMap<String, ClientSettings>,
    /// How the server ends.
    pub drain: Drain,
    /// What is logged.
    pub log: Log,
    /// Where traces go.
    pub traces: Traces,
}

/// What computes the labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
}

/// What one request, message or stream may carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Rows in one request, of a text model its sequences; 1 to `batching.max_batch_rows`.
    pub max_rows: u32,
    /// Tokens in one request to a text model, 1 to `batching.max_batch_tokens`.
    pub max_tokens: u32,
    /// Bytes of one message, either way, 65536 to 2^31 - 1. Decoding one that is made to cost much
    /// takes up to 24 times as much memory for a moment, beside `held_bytes`.
    pub max_message_bytes: u32,
    /// Temperatures in one request, 1 to 8.
    pub max_temperatures: u32,
    /// Requests in flight on one stream, 1 to 65536; the server stops reading past it.
    pub max_stream_in_flight: u32,
    /// Connections open to the gRPC port, 1 to 2^20; more are closed as they come.
    pub max_connections: u32,
    /// The same of one host, by its address: 1 or more. Behind a balancer or a gateway that connects for all
    /// of its clients, as many as `max_connections`.
    pub max_host_connections: u32,
    /// Calls and streams open on one connection, 1 to 65536.
    pub max_connection_streams: u32,
    /// How long a connection may last, in seconds, 0 or 1 to 10^9; 0: for ever. Eight or nine tenths on, at
    /// random, it takes no new calls; its label streams end in the last tenth of their own time, at random,
    /// so that not all clients come back at once. Behind a balancer that chooses for each connection they are
    /// spread anew. What does not end by itself then, such as a health watch, or what a client does not read,
    /// is closed as late as a label stream may end: after twice that time and twice its grace.
    pub max_connection_age_seconds: f64,
    /// How long a stream that has reached its age may take to be answered, in seconds, above 0 and at
    /// most 3600; what is left then is dropped.
    pub connection_grace_seconds: f64,
    /// Bytes that all requests may hold, from admission until the connection has taken the answer;
    /// past it requests get RESOURCE_EXHAUSTED. The last eighth is for clients that hold nothing.
    /// 2^20 to 2^50.
    pub held_bytes: u64,
    /// As `held_bytes`, for one client. 2^20 to `held_bytes`.
    pub client_held_bytes: u64,
}

/// How requests become batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batching {
    /// Rows in one forward pass, 1 or more.
    pub max_batch_rows: u32,
    /// Rows that may wait over all clients of one priority; past it requests get RESOURCE_EXHAUSTED. At
    /// least `max_batch_rows`; twice that or more keeps room for the largest request of a client that has
    /// nothing waiting.
    pub max_queue_rows: u32,
    /// Rows that may wait for one client. At least `max_batch_rows`.
    pub max_client_rows: u32,
    /// Of a text model, in the place of `max_batch_rows`: tokens in one forward pass, 1 or more.
    pub max_batch_tokens: u32,
    /// Of a text model, in the place of `max_queue_rows`. At least `max_batch_tokens`.
    pub max_queue_tokens: u32,
    /// Of a text model, in the place of `max_client_rows`. At least `max_batch_tokens`.
    pub max_client_tokens: u32,
    /// Clients with waiting rows, 1 to 2^20.
    pub max_clients: u32,
    /// How long a batch that is not full waits for more, in microseconds; 0: not at all.
    pub max_wait_us: u32,
    /// Longest time from admission to the end of the forward pass, in milliseconds, at least twice
    /// `max_wait_us`; 0: none. Batches and what may wait are kept small enough for it, as measured
    /// batches suggest, and what would wait longer gets RESOURCE_EXHAUSTED.
    pub target_latency_ms: f64,
}

/// Whose work goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before everyone else's.
    High,
    /// In between.
    #[default]
    Normal,
    /// In what the others leave.
    Low,
}

impl From<Priority> for stillhouse_batcher::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::High => Self::High,
            Priority::Normal => Self::Normal,
            Priority::Low => Self::Low,
        }
    }
}

/// The client that stands for all that are not named in `clients`.
const DEFAULT_CLIENT: &str = "default";

/// A client's share of the device and its quotas. What is asked for counts, whether it is cached or
/// not, but not what gets RESOURCE_EXHAUSTED; past a quota a request gets RESOURCE_EXHAUSTED and a time to
/// try again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientSettings {
    /// Its share of the device, beside those of the others that wait: 1 to 65536.
    pub weight: u32,
    /// Who goes first: `high`, `normal` or `low`. Each has a queue with the bounds of `batching`; a
    /// batch takes from the highest first. One that waits goes first in one batch of 17.
    pub priority: Priority,
    /// Requests a second, above 0 and at most 10^9; 0: no quota.
    pub requests_per_second: f64,
    /// Rows, or tokens of a text model, a second, above 0 and at most 10^12; 0: no quota.
    pub rows_per_second: f64,
    /// Requests from admission until their answers are taken; 0: no quota.
    pub max_in_flight: u32,
}

impl ClientSettings {
    /// Whether there are no quotas.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.requests_per_second == 0.0 && self.rows_per_second == 0.0 && self.max_in_flight == 0
    }
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            weight: 1,
            priority: Priority::default(),
            requests_per_second: 0.0,
            rows_per_second: 0.0,
            max_in_flight: 0,
        }
    }
}

/// What is kept of what the models computed: of a row of features its logits, of a sequence its
/// logits or hidden states, before temperature, ensemble rule and encoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Whether a row is computed once for all who ask for it. Without, nothing is kept and each
    /// request has a forward pass of its own.
    pub enabled: bool,
    /// Bytes that are kept in memory, 0 to 2^50. With 0 only requests that wait at the same time
    /// share a row. Once a request has asked a classifier for hidden states, these are kept with the
    /// logits, too.
    pub memory_bytes: u64,
    /// Folder of the tier that outlives the process, this server's alone; none: no such tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_dir: Option<PathBuf>,
    /// Bytes that the folder may take, 2^24 to 2^50.
    pub disk_bytes: u64,
}

/// How the server ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Longest time between SIGTERM and exit, in seconds, above 0 and at most 3600.
    pub limit_seconds: f64,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A filter: `info`, `debug`, or per module as in `info,teacher_server=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: Vec::new(),
            ensemble: Rule::default(),
            name: String::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            metrics_listen: None,
            status_peers: Vec::new(),
            health_listen: None,
            access_file: None,
            reload_seconds: 5.0,
            device: Device::Cpu,
            tls: None,
            limits: Limits::default(),
            batching: Batching::default(),
            cache: Cache::default(),
            clients: BTreeMap::new(),
            drain: Drain::default(),
            log: Log::default(),
            traces: Traces::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_rows: 1024,
            max_tokens: 8192,
            max_message_bytes: 16 << 20,
            max_temperatures: MAX_TEMPERATURES,
            max_stream_in_flight: 64,
            max_connections: 4096,
            max_host_connections: 1024,
            max_connection_streams: 64,
            max_connection_age_seconds: 0.0,
            connection_grace_seconds: 30.0,
            held_bytes: 2 << 30,
            client_held_bytes: 512 << 20,
        }
    }
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            max_batch_rows: 1024,
            max_queue_rows: 65_536,
            max_client_rows: 16_384,
            max_batch_tokens: 8192,
            max_queue_tokens: 524_288,
            max_client_tokens: 131_072,
            max_clients: 4096,
            max_wait_us: 0,
            target_latency_ms: 0.0,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { enabled: true, memory_bytes: 256 << 20, disk_dir: None, disk_bytes: 10 << 30 }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { limit_seconds: 25.0 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// What waits for the device and runs on it at once: rows, or tokens.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) max_batch: u32,
    pub(crate) max_queue: u32,
    pub(crate) max_client: u32,
    pub(crate) max_clients: u32,
    pub(crate) max_wait_us: u32,
    pub(crate) target_latency: Duration,
}

impl Batching {
    /// The bounds of a model that takes tokens, or features.
    pub(crate) fn bounds(&self, tokens: bool) -> Bounds {
        let [max_batch, max_queue, max_client] = if tokens {
            [self.max_batch_tokens, self.max_queue_tokens, self.max_client_tokens]
        } else {
            [self.max_batch_rows, self.max_queue_rows, self.max_client_rows]
        };
        let (max_clients, max_wait_us) = (self.max_clients, self.max_wait_us);
        let target_latency = Duration::try_from_secs_f64(self.target_latency_ms / 1e3);
        let target_latency = target_latency.unwrap_or_default();
        Bounds { max_batch, max_queue, max_client, max_clients, max_wait_us, target_latency }
    }
}

impl Settings {
    /// `reload_seconds`; call after [`Settings::validate`].
    pub(crate) fn reload_every(&self) -> Duration {
        Duration::try_from_secs_f64(self.reload_seconds).unwrap_or(Duration::from_secs(5))
    }

    /// Default settings for the model in a folder, on a free loopback port.
    pub fn embedded(model: impl Into<PathBuf>) -> Self {
        Self {
            model: vec![model.into()],
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..Self::default()
        }
    }

    /// The share and the quotas of clients that are not named.
    pub(crate) fn default_client(&self) -> ClientSettings {
        self.clients.get(DEFAULT_CLIENT).cloned().unwrap_or_default()
    }

    /// `limits.max_connection_age_seconds`, if there is one; call after [`Settings::validate`].
    pub(crate) fn connection_age(&self) -> Option<Duration> {
        let age = self.limits.max_connection_age_seconds;
        Duration::try_from_secs_f64(age).ok().filter(|age| !age.is_zero())
    }

    /// `limits.connection_grace_seconds`; call after [`Settings::validate`].
    pub(crate) fn connection_grace(&self) -> Duration {
        let grace = self.limits.connection_grace_seconds;
        Duration::try_from_secs_f64(grace).unwrap_or(Duration::ZERO)
    }

    /// `drain.limit_seconds`; call after [`Settings::validate`].
    pub(crate) fn drain_limit(&self) -> Duration {
        Duration::try_from_secs_f64(self.drain.limit_seconds).unwrap_or(Duration::ZERO)
    }
}
