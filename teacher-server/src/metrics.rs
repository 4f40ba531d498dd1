//! The catalogue of what a teacher server measures.
//!
//! Everything is registered at start, so that a dashboard and an alert find it before the first
//! request.

use metrics::Unit;
use stillhouse_runtime::telemetry::{Kind, Metric};

/// Upper bounds for times from 50 microseconds to 10 seconds.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// Upper bounds for rows in a batch.
const ROWS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// Upper bounds for tokens in a batch.
const TOKENS: &[f64] = &[
    1.0, 4.0, 16.0, 64.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0,
    65_536.0,
];

/// Upper bounds for parts of a whole.
const PARTS: &[f64] = &[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

macro_rules! names {
    ($($constant:ident = $name:literal),* $(,)?) => {
        $(pub(crate) const $constant: &str = concat!("stillhouse_teacher_", $name);)*
    };
}

names! {
    SERVING = "serving",
    MEMBERS = "members",
    REQUESTS = "requests_total",
    ROWS_LABELLED = "rows_total",
    ROW_ERRORS = "row_errors_total",
    LABEL_BYTES = "label_bytes_total",
    REQUEST_BYTES = "request_bytes_total",
    REFUSED = "refused_total",
    STREAMS = "open_streams",
    QUEUE_ROWS = "queue_rows",
    QUEUE_CLIENTS = "queue_clients",
    HELD_BYTES = "held_bytes",
    QUEUE_WAIT = "queue_wait_seconds",
    BATCHES = "batches_total",
    BATCH_ROWS = "batch_rows",
    BATCH_TOKENS = "batch_tokens",
    BATCH_FILL = "batch_fill_ratio",
    CLIENT_ROWS = "client_rows_total",
    REPORTS = "reports_total",
    FORWARD = "forward_seconds",
    DEVICE_BUSY = "device_busy_ratio",
    ENCODE = "encode_seconds",
    ENCODE_WAIT = "encode_wait_seconds",
    DEVICE_PANICS = "device_panics_total",
    FORWARD_ROWS = "forward_rows_total",
    CACHE_ROWS = "cache_rows_total",
    CACHE_BYTES = "cache_bytes",
    CACHE_ENTRIES = "cache_entries",
    CACHE_CORRUPT = "cache_corrupt_total",
    CACHE_UNWRITTEN = "cache_unwritten_total",
    CONNECTIONS = "connections",
    CONNECTIONS_REFUSED = "connections_refused_total",
    DENIED = "denied_total",
    ACCESS_CLIENTS = "access_clients",
    RELOADS = "reloads_total",
    FILE_UNUSABLE = "file_unusable",
    TLS_EXPIRES = "tls_certificate_expires_timestamp_seconds",
}

/// The outcomes of a request, as the label `outcome` of `requests_total`.
const OUTCOMES: &[&[(&str, &str)]] = &[
    &[("outcome", "labelled")],
    &[("outcome", "invalid")],
    &[("outcome", "refused")],
    &[("outcome", "denied")],
    &[("outcome", "deadline")],
    &[("outcome", "cancelled")],
    &[("outcome", "draining")],
    &[("outcome", "failed")],
];

/// The encodings, as the label `encoding`.
const ENCODINGS: &[&[(&str, &str)]] = &[
    &[("encoding", "dense")],
    &[("encoding", "top_k")],
    &[("encoding", "ids")],
    &[("encoding", "sampled")],
    &[("encoding", "hidden")],
];

/// Why an admission was refused, as the label `reason`.
const REFUSALS: &[&[(&str, &str)]] = &[
    &[("reason", "queue")],
    &[("reason", "client")],
    &[("reason", "clients")],
    &[("reason", "held")],
    &[("reason", "client_held")],
    &[("reason", "requests")],
    &[("reason", "rows")],
    &[("reason", "in_flight")],
    &[("reason", "names")],
];

/// Why a batch was launched when it was, as the label `reason`.
const LAUNCHES: &[&[(&str, &str)]] = &[
    &[("reason", "full")],
    &[("reason", "waited")],
    &[("reason", "deadline")],
    &[("reason", "draining")],
];

/// Where a row's output came from, as the label `source`.
const SOURCES: &[&[(&str, &str)]] = &[
    &[("source", "memory")],
    &[("source", "disk")],
    &[("source", "shared")],
    &[("source", "computed")],
];

/// The cache's tiers, as the label `tier`.
const TIERS: &[&[(&str, &str)]] = &[&[("tier", "memory")], &[("tier", "disk")]];

/// Why a row was not written to the disk tier, as the label `reason`.
const UNWRITTEN: &[&[(&str, &str)]] =
    &[&[("reason", "full")], &[("reason", "behind")], &[("reason", "failed")]];

/// What is listened on, as the label `port`.
const PORTS: &[&[(&str, &str)]] = &[&[("port", "grpc")], &[("port", "health")]];

/// Why a connection was closed, as the label `reason`.
const UNCONNECTED: &[&[(&str, &str)]] = &[
    &[("port", "grpc"), ("reason", "handshake")],
    &[("port", "grpc"), ("reason", "timeout")],
    &[("port", "grpc"), ("reason", "crowd")],
    &[("port", "grpc"), ("reason", "limit")],
    &[("port", "grpc"), ("reason", "host")],
    &[("port", "health"), ("reason", "handshake")],
    &[("port", "health"), ("reason", "timeout")],
    &[("port", "health"), ("reason", "crowd")],
    &[("port", "health"), ("reason", "limit")],
    &[("port", "health"), ("reason", "host")],
];

/// Why a caller was denied what it asked for, as the label `reason`.
const DENIALS: &[&[(&str, &str)]] =
    &[&[("reason", "unauthenticated")], &[("reason", "teacher")], &[("reason", "encoding")]];

/// What is read again, as the label `file`.
const WATCHED: &[&[(&str, &str)]] = &[&[("file", "tls")], &[("file", "access")]];

/// What was read again, and whether it could be used.
const RELOADED: &[&[(&str, &str)]] = &[
    &[("file", "tls"), ("result", "done")],
    &[("file", "tls"), ("result", "failed")],
    &[("file", "access"), ("result", "done")],
    &[("file", "access"), ("result", "failed")],
];

/// Clients that nobody has named, as the label `client`.
const OTHERS: &[&[(&str, &str)]] = &[&[("client", "other")]];

/// Whether a report was taken, as the label `result`.
const REPORTED: &[&[(&str, &str)]] = &[&[("result", "taken")], &[("result", "invalid")]];

const fn metric(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind, unit, help, series: &[] }
}

/// Every metric of a teacher server.
pub const CATALOGUE: &[Metric] = &[
    metric(
        SERVING,
        Kind::Gauge,
        Unit::Count,
        "1 while requests are accepted, 0 while loading or draining.",
    ),
    metric(MEMBERS, Kind::Gauge, Unit::Count, "Models that answer as one teacher."),
    Metric {
        name: REQUESTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Label requests, unary or on a stream, by outcome.",
        series: OUTCOMES,
    },
    Metric {
        name: ROWS_LABELLED,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Rows answered with labels, by encoding.",
        series: ENCODINGS,
    },
    metric(
        ROW_ERRORS,
        Kind::Counter,
        Unit::Count,
        "Rows without a label, because the teacher's output was not finite.",
    ),
    Metric {
        name: LABEL_BYTES,
        kind: Kind::Counter,
        unit: Unit::Bytes,
        help: "Encoded labels, by encoding.",
        series: ENCODINGS,
    },
    metric(
        REQUEST_BYTES,
        Kind::Counter,
        Unit::Bytes,
        "Label requests that were read, whatever became of them.",
    ),
    Metric {
        name: REFUSED,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Requests answered with RESOURCE_EXHAUSTED, by the bound or the client's quota that was reached.",
        series: REFUSALS,
    },
    metric(STREAMS, Kind::Gauge, Unit::Count, "Open label streams."),
    metric(
        QUEUE_ROWS,
        Kind::Gauge,
        Unit::Count,
        "Rows, or tokens of a text model, waiting for the device.",
    ),
    metric(QUEUE_CLIENTS, Kind::Gauge, Unit::Count, "Clients with rows waiting for the device."),
    metric(
        HELD_BYTES,
        Kind::Gauge,
        Unit::Bytes,
        "What requests hold in memory, from admission until their answers are taken.",
    ),
    metric(
        QUEUE_WAIT,
        Kind::Histogram(SECONDS),
        Unit::Seconds,
        "From admission to the launch of the batch, per request.",
    ),
    Metric {
        name: BATCHES,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Forward passes, by why the batch did not wait for more.",
        series: LAUNCHES,
    },
    metric(BATCH_ROWS, Kind::Histogram(ROWS), Unit::Count, "Rows in a forward pass."),
    metric(
        BATCH_TOKENS,
        Kind::Histogram(TOKENS),
        Unit::Count,
        "Tokens in a forward pass of a text model.",
    ),
    metric(
        BATCH_FILL,
        Kind::Histogram(PARTS),
        Unit::Count,
        "Cost of a batch over the most that it may be, batching.max_batch_rows or _tokens.",
    ),
    Metric {
        name: CLIENT_ROWS,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Rows answered with labels, by client: those that the settings or the list of clients \
               name, and `other` for all the rest.",
        series: OTHERS,
    },
    Metric {
        name: REPORTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "What students said of their runs, and whether it was within its ranges.",
        series: REPORTED,
    },
    metric(FORWARD, Kind::Histogram(SECONDS), Unit::Seconds, "Time of a forward pass."),
    metric(
        DEVICE_BUSY,
        Kind::Gauge,
        Unit::Count,
        "Part of the last ten seconds in which the device ran forward passes, the one under way too: 0 to 1.",
    ),
    metric(
        ENCODE,
        Kind::Histogram(SECONDS),
        Unit::Seconds,
        "Softmax, selection and packing, per request.",
    ),
    metric(
        ENCODE_WAIT,
        Kind::Histogram(SECONDS),
        Unit::Seconds,
        "Wait of an answer that is large to encode for its turn.",
    ),
    metric(
        DEVICE_PANICS,
        Kind::Counter,
        Unit::Count,
        "Panics of the device thread, each failing one batch.",
    ),
    metric(
        FORWARD_ROWS,
        Kind::Counter,
        Unit::Count,
        "Rows, or sequences of a text model, that a forward pass was run for.",
    ),
    Metric {
        name: CACHE_ROWS,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Rows, or sequences, of answered requests by where their outputs came from: the \
               cache's memory or disk, another request's forward pass, or their own.",
        series: SOURCES,
    },
    Metric {
        name: CACHE_BYTES,
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "What the cache holds, by tier.",
        series: TIERS,
    },
    metric(CACHE_ENTRIES, Kind::Gauge, Unit::Count, "Rows, or sequences, in the cache's memory."),
    metric(
        CACHE_CORRUPT,
        Kind::Counter,
        Unit::Count,
        "Entries of the cache's disk tier, or whole files, that were not what had been written; \
         each counts as a miss.",
    ),
    Metric {
        name: CACHE_UNWRITTEN,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Rows that the cache's disk tier did not take: it was full, its writer was behind, or \
               the disk failed.",
        series: UNWRITTEN,
    },
    Metric {
        name: CONNECTIONS,
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Open connections, by port: the gRPC port, and the one for health probes.",
        series: PORTS,
    },
    Metric {
        name: CONNECTIONS_REFUSED,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Connections that were closed: before their first call, since the handshake of TLS or HTTP/2 \
               failed or took too long, or the limit of the port or of one host was reached \
               (limits.max_connections and max_host_connections of the gRPC port); or to make way for newer \
               ones, of handshakes and on the health port.",
        series: UNCONNECTED,
    },
    Metric {
        name: DENIED,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Calls and requests of callers that are not in the list of clients, or that may not \
               ask this teacher or for this encoding.",
        series: DENIALS,
    },
    metric(ACCESS_CLIENTS, Kind::Gauge, Unit::Count, "Clients in the list of those that may ask."),
    Metric {
        name: RELOADS,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Changes of certificates and of the list of clients, by whether they could be used; \
               what could not leaves the one before in place.",
        series: RELOADED,
    },
    Metric {
        name: FILE_UNUSABLE,
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "1 while the certificates, or the list of clients, have changed to what cannot be used, and \
               the ones before are in use.",
        series: WATCHED,
    },
    metric(
        TLS_EXPIRES,
        Kind::Gauge,
        Unit::Seconds,
        "When the first of the certificates that are in use (tls.cert) expires, in seconds since 1970; 0 \
         without TLS, or if they do not tell.",
    ),
];
