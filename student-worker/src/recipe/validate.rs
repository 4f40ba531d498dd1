//! What a recipe's values must be, beyond their types. Checked before anything is opened.

use std::fmt::Display;

use stillhouse_nn::{Divergence, LossConfig};
use stillhouse_proto::limits::MAX_MEMBERS;

use crate::label_client::is_here;

use super::{
    Change, LossSchedule, Recipe, Step, data,
    teacher::{
        DenseValues, EncodingName, EncodingSection, OnTeacherLoss, TeacherKind, TeacherSection,
    },
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
pub(crate) fn check(
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
pub(crate) fn require<T>(value: Option<&T>, key: &str, expected: &str) -> Result<(), Invalid> {
    check(value.is_some(), key, "no value", expected)
}

/// Checks a name that becomes a folder.
pub(crate) fn check_name(key: &str, name: &str) -> Result<(), Invalid> {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let fits = !name.is_empty() && name.chars().all(plain) && !name.starts_with('.');
    let expected = "letters, digits, `-`, `_` and `.`, not starting with `.`";
    check(fits, key, format!("{name:?}"), expected)
}

/// Checks every value of a recipe that is not another part's own configuration.
pub(super) fn validate(recipe: &Recipe) -> Result<(), Invalid> {
    check_name("name", &recipe.name)?;
    let seed = recipe.seed;
    check(i64::try_from(seed).is_ok(), "seed", seed, "0 to 9223372036854775807")?;
    data::validate(recipe)?;
    train(recipe)?;
    narrowed(recipe)?;
    let classes = recipe.student.classes();
    check(classes <= 1 << 16, "student.num_labels", classes, "1 to 65536")?;
    let soft = recipe.loss.weights().1;
    let key = if recipe.loss.soft_weight.is_some() { "loss.soft_weight" } else { "loss.alpha" };
    match &recipe.teacher {
        Some(section) => {
            loss_schedule(recipe)?;
            let weights = recipe.extreme_weights();
            let taught = weights.iter().any(|(_, (_, soft))| *soft > 0.0);
            check(taught, key, soft, "above 0 where there is a [teacher]")?;
            // A weight of its own is the one that is 0 throughout: alpha and 1 - alpha are not both.
            let key = match recipe.loss.hard_weight {
                Some(0.0) => "loss.hard_weight",
                _ => "loss.soft_weight",
            };
            for (epoch, (hard, soft)) in weights {
                let range = format!("above 0 where the other weight is 0, as in epoch {epoch}");
                check(hard > 0.0 || soft > 0.0, key, 0, &range)?;
            }
            teacher(section, &recipe.loss, Some(recipe.student.classes()))
        }
        None => {
            check(soft == 0.0, key, soft, "0 where there is no [teacher]")?;
            let given = recipe.loss_schedule != LossSchedule::default();
            check(!given, "loss_schedule", "a table", "none where there is no [teacher]")
        }
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

/// Every value that a schedule can come to, and the epochs that it names.
fn loss_schedule(recipe: &Recipe) -> Result<(), Invalid> {
    let (schedule, epochs) = (&recipe.loss_schedule, recipe.train.epochs);
    let start = schedule.start_epoch;
    let range = format!("1 to {epochs}, the epochs of the run");
    check((1..=epochs).contains(&start), "loss_schedule.start_epoch", start, &range)?;
    let weighted = recipe.loss.soft_weight.is_some() && recipe.loss.hard_weight.is_some();
    let given = schedule.alpha.is_some() && weighted;
    check(!given, "loss_schedule.alpha", "a table", "none beside both weights in [loss]")?;
    for (key, change) in [
        ("loss_schedule.alpha", &schedule.alpha),
        ("loss_schedule.temperature", &schedule.temperature),
    ] {
        match change {
            Some(Change::Linear { begin_epoch, end_epoch, .. })
            | Some(Change::Cosine { begin_epoch, end_epoch, .. }) => {
                let begin = format!("{key}.begin_epoch");
                check(*begin_epoch >= 1, &begin, begin_epoch, "1 or more")?;
                let range = format!("above {begin_epoch}, {key}.begin_epoch");
                check(end_epoch > begin_epoch, &format!("{key}.end_epoch"), end_epoch, &range)?;
            }
            Some(Change::Steps { steps }) => {
                let key = format!("{key}.steps");
                check(!steps.is_empty(), &key, "an empty list", "one step or more")?;
                let mut before = 0;
                for (at, Step { epoch, .. }) in steps.iter().enumerate() {
                    let range = format!("above {before}: epochs in order, from 1");
                    check(*epoch > before, &format!("{key}[{at}].epoch"), epoch, &range)?;
                    before = *epoch;
                }
            }
            None => {}
        }
    }
    for (key, alpha) in schedule.alpha.iter().flat_map(Change::values) {
        let key = format!("loss_schedule.alpha.{key}");
        check((0.0..=1.0).contains(&alpha), &key, alpha, "0 to 1")?;
    }
    for (key, t) in schedule.temperature.iter().flat_map(Change::values) {
        let key = format!("loss_schedule.temperature.{key}");
        let expected = "1.2e-38 to 3.4e38, the numbers above 0 that 32 bits hold";
        let fits = (t as f32).is_normal() && t > 0.0;
        check(fits, &key, format!("{t:e}"), expected)?;
    }
    Ok(())
}

fn train(recipe: &Recipe) -> Result<(), Invalid> {
    let train = &recipe.train;
    check((1..=1_000_000).contains(&train.epochs), "train.epochs", train.epochs, "1 to 1000000")?;
    let batch = train.batch_size;
    check((1..=1 << 20).contains(&batch), "train.batch_size", batch, "1 to 1048576")?;
    check(train.eval_every >= 1, "train.eval_every", train.eval_every, "1 or more epochs")?;
    let keep = train.keep_checkpoints;
    check(keep >= 1, "train.keep_checkpoints", keep, "1 or more")?;
    for (key, norm) in [("train.clip_norm", train.clip_norm), ("train.max_norm", train.max_norm)] {
        if let Some(norm) = norm {
            check(norm.is_finite() && norm > 0.0, key, norm, "a finite number above 0")?;
        }
    }
    Ok(())
}

/// Checks a section about the teacher of a student with so many classes, where that is known.
/// What is shown to teachers elsewhere.
fn credentials(teacher: &TeacherSection) -> Result<(), Invalid> {
    let embedded = teacher.kind == TeacherKind::Embedded;
    let expected = "none with kind = \"embedded\"";
    check(!(embedded && teacher.token_file.is_some()), "teacher.token_file", "a path", expected)?;
    check(!(embedded && teacher.tls.is_some()), "teacher.tls", "a table", expected)?;
    let tls = teacher.tls.clone().unwrap_or_default();
    let pair = tls.cert.is_some() == tls.key.is_some();
    check(pair, "teacher.tls.cert", "one of cert and key", "both of them, or neither")?;
    let name = tls.server_name.as_deref();
    check(name != Some(""), "teacher.tls.server_name", "an empty name", "a DNS name, or none")?;
    let mut plain = teacher.endpoints.iter().filter(|endpoint| endpoint.starts_with("http://"));
    let certified = tls.ca.is_some() || tls.cert.is_some() || name.is_some();
    if let Some(endpoint) = plain.clone().next().filter(|_| certified) {
        let expected = "https://HOST:PORT for all of them where there is a [teacher.tls]";
        check(false, "teacher.endpoints", format!("{endpoint:?}"), expected)?;
    }
    let open = teacher.token_file.is_some() && !tls.allow_plaintext_token;
    if let Some(endpoint) = plain.find(|endpoint| open && !is_here(endpoint)) {
        let expected = "https://HOST:PORT with a teacher.token_file, which anybody on the way could \
                        read otherwise (teacher.tls.allow_plaintext_token = true lets them)";
        check(false, "teacher.endpoints", format!("{endpoint:?}"), expected)?;
    }
    Ok(())
}

pub(crate) fn teacher(
    teacher: &TeacherSection,
    loss: &LossConfig,
    classes: Option<usize>,
) -> Result<(), Invalid> {
    match teacher.kind {
        TeacherKind::Embedded => {
            let given = teacher.models.len();
            if given == 0 {
                require(teacher.model.as_ref(), "teacher.model", "a model directory")?;
            }
            let alone = teacher.model.is_none() || given == 0;
            check(alone, "teacher.models", given, "none beside teacher.model")?;
            let range = format!("1 to {MAX_MEMBERS} model directories");
            check(given <= MAX_MEMBERS, "teacher.models", given, &range)?;
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
            let given = teacher.models.len();
            check(given == 0, "teacher.models", given, "none with kind = \"endpoints\"")?;
        }
        // Where the labels were captured may stay in the recipe: it is not asked.
        TeacherKind::Captured => {
            require(teacher.dir.as_ref(), "teacher.dir", "the folder of a capture")?;
        }
    }
    let captured = teacher.kind == TeacherKind::Captured;
    let expected = "none unless kind = \"captured\"";
    check(captured || teacher.dir.is_none(), "teacher.dir", "a path", expected)?;
    for endpoint in &teacher.endpoints {
        let known = ["http://", "https://"].iter().find_map(|scheme| endpoint.strip_prefix(scheme));
        let expected = "http://HOST:PORT or https://HOST:PORT";
        let known = known.is_some_and(|rest| !rest.is_empty());
        check(known, "teacher.endpoints", format!("{endpoint:?}"), expected)?;
    }
    credentials(teacher)?;
    let client = &teacher.client;
    check(client.len() <= 128, "teacher.client", format!("{client:?}"), "at most 128 bytes")?;
    if let Some(rows) = teacher.request_rows {
        check(rows >= 1, "teacher.request_rows", rows, "1 or more")?;
    }
    let prefetch = teacher.prefetch;
    check((0..=1024).contains(&prefetch), "teacher.prefetch", prefetch, "0 to 1024 batches")?;
    let kept = teacher.kept_bytes;
    check(kept <= 1 << 50, "teacher.kept_bytes", kept, "0 to 2^50")?;
    let timeout = teacher.timeout_ms;
    check(timeout >= 1, "teacher.timeout_ms", timeout, "1 or more")?;

    let alone = teacher.on_teacher_loss == OnTeacherLoss::HardLabels;
    let expected = "wait or fail: a captured teacher is not lost";
    check(!(alone && captured), "teacher.on_teacher_loss", "\"hard-labels\"", expected)?;
    let expected = "wait or fail with loss.hard_weight = 0: nothing would be left to learn";
    let nothing = loss.hard_weight == Some(0.0);
    check(!(alone && nothing), "teacher.on_teacher_loss", "\"hard-labels\"", expected)?;
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
    match &teacher.encoding {
        // That of the capture, which nobody has opened yet.
        None if captured => Ok(()),
        None => encoding(&EncodingSection::default(), loss.divergence, classes),
        Some(section) => encoding(section, loss.divergence, classes),
    }
}

fn encoding(
    encoding: &EncodingSection,
    divergence: Divergence,
    classes: Option<usize>,
) -> Result<(), Invalid> {
    match (encoding.kind, encoding.k) {
        (EncodingName::TopK, k) => {
            let range = match classes {
                Some(classes) => format!("1 to {classes}, the student's classes"),
                None => "1 or more".to_owned(),
            };
            let most = classes.unwrap_or(usize::MAX);
            let within = k.is_some_and(|k| (1..=most).contains(&(k as usize)));
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
    if let Some(values) = encoding.values {
        let (value, logits) = match values {
            DenseValues::LogProbabilities => ("\"log_probabilities\"", false),
            DenseValues::Logits => ("\"logits\"", true),
        };
        let dense = encoding.kind == EncodingName::Dense;
        check(dense, "teacher.encoding.values", value, "none unless kind = \"dense\"")?;
        let suits = logits || divergence != Divergence::LogitMse;
        let expected = "\"logits\" with loss.divergence = logit_mse";
        check(suits, "teacher.encoding.values", value, expected)?;
    }
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
