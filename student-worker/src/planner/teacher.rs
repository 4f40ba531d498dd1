//! What a teacher does: how long a request takes alone, and how many labels it makes when it is kept busy.

use std::time::Duration;

use stillhouse_proto::v1::encoding::Kind;

use crate::{
    label_client::Credentials,
    load::{self, Client},
    recipe::{TeacherSection, teacher::TeacherKind},
    train::{self, Room, embedded},
};

/// Requests that keep it busy.
const BUSY: usize = 8;
/// Until its memory and its batches are as they will be.
const WARM_UP: Duration = Duration::from_millis(500);

/// What the student will ask for.
#[derive(Clone, Debug)]
pub(super) struct Asks {
    /// Rows, or sequences, of a request.
    pub(super) rows: usize,
    /// Tokens of a sequence; 0: rows of features.
    pub(super) tokens: usize,
    pub(super) kind: Kind,
    pub(super) temperature: f32,
}

/// What one teacher does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Teacher {
    /// Rows, or tokens, a second, with requests always waiting.
    pub(super) per_second: f64,
    /// A request alone, in seconds.
    pub(super) latency: f64,
    /// Labels of a row, or a sequence: a classifier of texts gives one, a language model one a token.
    pub(super) labels_per_row: f64,
    /// Of a label, on the wire.
    pub(super) bytes_per_label: f64,
    /// Of a request's input, on the wire, for each row, or token.
    pub(super) input_bytes_per_unit: f64,
    /// Of a label, as a student keeps it.
    pub(super) kept_bytes_per_label: f64,
    /// Of a row, or a sequence, as the teacher's cache keeps it; none: it does not tell.
    pub(super) cached_bytes_per_row: Option<f64>,
}

/// Measures the first of a recipe's teachers, or the one that is embedded.
pub(super) async fn measure(
    section: &TeacherSection,
    asks: &Asks,
    enough: Duration,
) -> Result<Teacher, train::Error> {
    let (endpoint, server) = match section.kind {
        TeacherKind::Embedded => {
            let room = Room { rows: asks.rows, tokens: asks.rows * asks.tokens };
            let server = embedded::start(section, room).await?;
            (format!("http://{}", server.address()), Some(server))
        }
        _ => (section.endpoints.first().cloned().unwrap_or_default(), None),
    };
    let client = load::Asks {
        name: if section.client.is_empty() { "plan".to_owned() } else { section.client.clone() },
        rows: u32::try_from(asks.rows).unwrap_or(u32::MAX),
        tokens: u32::try_from(asks.tokens).unwrap_or(u32::MAX),
        distinct: 0,
        kind: asks.kind.clone(),
        temperature: asks.temperature,
        timeout: Duration::from_millis(section.timeout_ms.into()),
        rate: 1.0,
        rows_seed: crate::random::entropy(),
        seed: 0,
        number: 0,
    };
    let mut client = Client::connect(&endpoint, &Credentials::of(section), client).await?;
    client.closed(BUSY, WARM_UP).await?;
    let alone = client.closed(1, enough / 4).await?;
    let busy = client.closed(BUSY, enough).await?;
    let load::Shape { classes, hidden_size, labels_per_row, cached_bytes, .. } = client.shape;
    let kept = match &asks.kind {
        Kind::Dense(_) => f64::from(classes),
        Kind::TopK(top_k) => 2.0 * f64::from(top_k.k) + 1.0,
        Kind::Ids(ids) => f64::from(ids.ids_per_row) + 1.0,
        Kind::Sampled(_) => 0.0,
        Kind::Hidden(_) => f64::from(hidden_size),
    };
    if let Some(server) = server {
        drop(client);
        server.shutdown().await?;
    }
    let rows = busy.answers.max(1) as f64 * asks.rows as f64;
    let (units, labels) = (rows * asks.tokens.max(1) as f64, rows * f64::from(labels_per_row));
    Ok(Teacher {
        per_second: units / busy.took.as_secs_f64(),
        latency: alone.took.as_secs_f64() / alone.answers.max(1) as f64,
        labels_per_row: labels_per_row.into(),
        bytes_per_label: busy.bytes as f64 / labels,
        kept_bytes_per_label: 4.0 * kept,
        input_bytes_per_unit: busy.input_bytes as f64 / units,
        cached_bytes_per_row: cached_bytes.map(|bytes| bytes as f64),
    })
}
