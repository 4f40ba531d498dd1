//! What a recipe's values must be, beyond their types. Checked before anything is opened.

use std::fmt::Display;

use stillhouse_nn::Divergence;

use super::{
    Recipe, data,
    teacher::{EncodingName, TeacherKind, TeacherSection},
};

/// A value that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {value} is not accepted, expected {expected}")]
pub struct Invalid {
    /// The key's full path.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What is accepted.
    pub expected: String,
}

/// Refuses a value unless `holds`.
pub(super) fn check(
    holds: bool,
    key: &str,
    value: impl Display,
    expected: &str,
) -> Result<(), Invalid> {
    if holds {
        return Ok(());
    }
    Err(Invalid { key: key.to_owned(), value: value.to_string(), expected: expected.to_owned() })
}

/// Refuses an absent value.
pub(super) fn require<T>(value: Option<&T>, key: &str, expected: &str) -> Result<(), Invalid> {
    check(value.is_some(), key, "no value", expected)
}

/// Checks every value of a recipe that is not another part's own configuration.
pub(super) fn validate(recipe: &Recipe) -> Result<(), Invalid> {
    let name = &recipe.name;
    let named = !name.is_empty()
        && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
        && !name.starts_with('.');
    check(
        named,
        "name",
        format!("{name:?}"),
        "letters, digits, `-`, `_` and `.`, not starting with `.`",
    )?;
    let seed = recipe.seed;
    check(i64::try_from(seed).is_ok(), "seed", seed, "0 to 9223372036854775807")?;
    data::validate(recipe)?;
    train(recipe)?;
    narrowed(recipe)?;
    let classes = recipe.student.classes();
    check(classes <= 1 << 16, "student.num_labels", classes, "1 to 65536")?;
    let alpha = recipe.loss.alpha;
    match &recipe.teacher {
        Some(section) => {
            check(alpha > 0.0, "loss.alpha", alpha, "above 0 where there is a [teacher]")?;
            teacher(section, recipe)
        }
        None => check(alpha == 0.0, "loss.alpha", alpha, "0 where there is no [teacher]"),
    }
}

/// Numbers that are kept in 64 bits and sent or multiplied with in 32: there, too, they must be
/// numbers above 0, with all their digits.
fn narrowed(recipe: &Recipe) -> Result<(), Invalid> {
    let fits = |key: &str, value: f64| {
        let expected = "1.2e-38 to 3.4e38, the numbers above 0 that 32 bits hold";
        check((value as f32).is_normal(), key, format!("{value:e}"), expected)
    };
    fits("loss.temperature", recipe.loss.temperature)?;
    fits("student.rescale_factor", recipe.student.rescale_factor())
}

fn train(recipe: &Recipe) -> Result<(), Invalid> {
    let train = &recipe.train;
    check(train.epochs >= 1, "train.epochs", train.epochs, "1 or more")?;
    let batch = train.batch_size;
    check((1..=1 << 20).contains(&batch), "train.batch_size", batch, "1 to 1048576")?;
    check(train.eval_every >= 1, "train.eval_every", train.eval_every, "1 or more epochs")?;
    let keep = train.keep_checkpoints;
    check(keep >= 1, "train.keep_checkpoints", keep, "1 or more")?;
    if let Some(norm) = train.clip_norm {
        check(norm.is_finite() && norm > 0.0, "train.clip_norm", norm, "a finite number above 0")?;
    }
    Ok(())
}

fn teacher(teacher: &TeacherSection, recipe: &Recipe) -> Result<(), Invalid> {
    match teacher.kind {
        TeacherKind::Embedded => {
            require(teacher.model.as_ref(), "teacher.model", "a model directory")?;
            let given = teacher.endpoints.len();
            check(given == 0, "teacher.endpoints", given, "none with kind = \"embedded\"")?;
        }
        TeacherKind::Endpoints => {
            let given = teacher.endpoints.len();
            check(given > 0, "teacher.endpoints", "an empty list", "one address or more")?;
            check(
                teacher.model.is_none(),
                "teacher.model",
                "a path",
                "none with kind = \"endpoints\"",
            )?;
        }
    }
    for endpoint in &teacher.endpoints {
        let known = endpoint.strip_prefix("http://").is_some_and(|rest| !rest.is_empty());
        check(known, "teacher.endpoints", format!("{endpoint:?}"), "http://HOST:PORT")?;
    }
    let client = &teacher.client;
    check(client.len() <= 128, "teacher.client", format!("{client:?}"), "at most 128 bytes")?;
    if let Some(rows) = teacher.request_rows {
        check(rows >= 1, "teacher.request_rows", rows, "1 or more")?;
    }
    let prefetch = teacher.prefetch;
    check((1..=1024).contains(&prefetch), "teacher.prefetch", prefetch, "1 to 1024 batches")?;
    let timeout = teacher.timeout_ms;
    check(timeout >= 1, "teacher.timeout_ms", timeout, "1 or more")?;

    let retry = &teacher.retry;
    let elapsed = retry.max_elapsed_seconds;
    check(
        elapsed > 0.0 && elapsed <= 1e6,
        "teacher.retry.max_elapsed_seconds",
        elapsed,
        "above 0, at most 1000000",
    )?;
    check(retry.initial_ms >= 1, "teacher.retry.initial_ms", retry.initial_ms, "1 or more")?;
    let range = format!("teacher.retry.initial_ms ({}) to 3600000", retry.initial_ms);
    check(
        (retry.initial_ms..=3_600_000).contains(&retry.max_ms),
        "teacher.retry.max_ms",
        retry.max_ms,
        &range,
    )?;
    encoding(teacher, recipe)
}

fn encoding(teacher: &TeacherSection, recipe: &Recipe) -> Result<(), Invalid> {
    let encoding = &teacher.encoding;
    let classes = recipe.student.classes();
    match (encoding.kind, encoding.k) {
        (EncodingName::TopK, k) => {
            let range = format!("1 to {classes}, the student's classes");
            let within = k.is_some_and(|k| (1..=classes).contains(&(k as usize)));
            let found = k.map_or("no value".to_owned(), |k| k.to_string());
            check(within, "teacher.encoding.k", found, &range)?;
        }
        (_, Some(k)) => check(false, "teacher.encoding.k", k, "none unless kind = \"top_k\"")?,
        (_, None) => {}
    }
    match (encoding.kind, encoding.draws) {
        (EncodingName::Sampled, draws) => {
            let within = draws.is_some_and(|draws| (1..=65_535).contains(&draws));
            let found = draws.map_or("no value".to_owned(), |draws| draws.to_string());
            check(within, "teacher.encoding.draws", found, "1 to 65535")?;
        }
        (_, Some(draws)) => {
            check(false, "teacher.encoding.draws", draws, "none unless kind = \"sampled\"")?;
        }
        (_, None) => {}
    }
    let divergence = recipe.loss.divergence;
    let (fits, expected) = match encoding.kind {
        EncodingName::Dense | EncodingName::Hidden => (true, ""),
        EncodingName::TopK => (
            divergence != Divergence::LogitMse,
            "another with teacher.encoding.kind = \"top_k\", which carries no logits",
        ),
        EncodingName::Sampled => (
            matches!(divergence, Divergence::ForwardKl | Divergence::CrossEntropy),
            "forward_kl or cross_entropy with teacher.encoding.kind = \"sampled\"",
        ),
    };
    check(fits, "loss.divergence", divergence.name(), expected)
}
