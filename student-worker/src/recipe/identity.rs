//! What decides the trained weights.
//!
//! A checkpoint belongs to a recipe whose relevant values are the same. Where files lie, how often
//! to report and how to retry may change between a run and its resumption.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{LossSchedule, Recipe, teacher::EncodingName};

/// The key of the hash over the training rows.
const ROWS: &str = "data (SHA-256 of the training rows)";
/// The key of the teacher's fingerprint.
const TEACHER: &str = "teacher (fingerprint)";

/// The values that decide the weights, by the dotted path of their key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(BTreeMap<String, Value>);

/// A value that differs between a run and the recipe that should go on with it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{key} is {now}, but the run was started with {then}")]
pub struct Difference {
    /// The key.
    pub key: String,
    /// The value now.
    pub now: String,
    /// The run's.
    pub then: String,
}

impl Identity {
    /// Of a recipe, the hash of its training rows and, with a teacher, its fingerprint.
    pub fn new(recipe: &Recipe, data_sha256: [u8; 32], teacher: Option<&[u8]>) -> Self {
        let mut values = BTreeMap::new();
        let mut add = |key: &str, value: Value| flatten(key, value, &mut values);
        add("seed", recipe.seed.into());
        add("student", json(&recipe.student));
        add("loss", json(&recipe.loss));
        // A run that was started before there were schedules has none, and goes on.
        if recipe.loss_schedule != LossSchedule::default() {
            add("loss_schedule", json(&recipe.loss_schedule));
        }
        add("optimizer", json(&recipe.optimizer));
        add("schedule", json(&recipe.schedule));
        add("train.epochs", recipe.train.epochs.into());
        add("train.batch_size", recipe.train.batch_size.into());
        add("train.clip_norm", json(&recipe.train.clip_norm));
        add("train.max_norm", json(&recipe.train.max_norm));
        let data = &recipe.data;
        let augment = &data.augment;
        for (key, pixels) in [("shift", augment.shift), ("crop_padding", augment.crop_padding)] {
            if pixels > 0 {
                add(&format!("data.augment.{key}"), pixels.into());
            }
        }
        if augment.flip {
            add("data.augment.flip", true.into());
        }
        // The rows themselves say all that these decide, but not why they differ.
        if !data.leave_out.is_empty() {
            add("data.leave_out", json(&data.leave_out));
        }
        add("data.keep", json(&data.keep));
        add("data.fraction", json(&data.fraction));
        add("data.train_rows", json(&data.train_rows));
        add(ROWS, hex(&data_sha256).into());
        if let Some(section) = &recipe.teacher {
            let encoding = section.encoding();
            add("teacher.encoding", json(&encoding.implicit(recipe.loss.divergence)));
            add("teacher.ensemble", json(&section.ensemble));
            // Draws are seeded per request, so how rows are cut into requests decides them.
            if encoding.kind == EncodingName::Sampled {
                let batch = recipe.train.batch_size;
                let rows = section.request_rows.unwrap_or(batch).min(batch);
                add("teacher.request_rows", rows.into());
            }
        }
        if let Some(fingerprint) = teacher {
            add(TEACHER, hex(fingerprint).into());
        }
        Self(values)
    }

    /// Of values by the name of their key, a hash of the training data and, with a teacher, its
    /// fingerprint.
    pub(crate) fn of(
        named: impl IntoIterator<Item = (&'static str, Value)>,
        data_sha256: [u8; 32],
        teacher: Option<&[u8]>,
    ) -> Self {
        let mut values = BTreeMap::new();
        named.into_iter().for_each(|(key, value)| flatten(key, value, &mut values));
        values.insert(ROWS.to_owned(), hex(&data_sha256).into());
        if let Some(fingerprint) = teacher {
            values.insert(TEACHER.to_owned(), hex(fingerprint).into());
        }
        Self(values)
    }

    /// The first value in which a run's identity differs.
    ///
    /// # Errors
    /// Names the key and both values.
    pub fn same_as(&self, run: &Self) -> Result<(), Difference> {
        self.compare(run, |_| true)
    }

    /// As [`Self::same_as`], where the teacher has not been asked who it is.
    ///
    /// # Errors
    /// Names the key and both values.
    pub fn same_but_for_teacher(&self, run: &Self) -> Result<(), Difference> {
        self.compare(run, |key| key != TEACHER)
    }

    /// The teacher's fingerprint, hexadecimal.
    pub fn teacher(&self) -> Option<&str> {
        self.0.get(TEACHER)?.as_str()
    }

    fn compare(&self, run: &Self, counts: impl Fn(&str) -> bool) -> Result<(), Difference> {
        // Which rows a part of the data holds follows from other keys: these say more.
        let keys = || self.0.keys().chain(run.0.keys());
        let rows = keys().filter(|key| *key == ROWS);
        let keys = keys().filter(|key| *key != ROWS).chain(rows).filter(|key| counts(key));
        let show = |value: Option<&Value>| value.map_or("not set".to_owned(), Value::to_string);
        for key in keys {
            let (now, then) = (self.0.get(key), run.0.get(key));
            if now != then {
                return Err(Difference { key: key.clone(), now: show(now), then: show(then) });
            }
        }
        Ok(())
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| Value::String(error.to_string()))
}

/// Tables become one entry per key; an absent value is no entry.
fn flatten(path: &str, value: Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flatten(&format!("{path}.{key}"), value, into);
            }
        }
        Value::Null => {}
        value => {
            into.insert(path.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{
        TeacherSection, recipe_for_tests as recipe,
        teacher::{EnsembleRule, TeacherKind},
    };

    fn identity(recipe: &Recipe) -> Identity {
        Identity::new(recipe, [7; 32], None)
    }

    #[test]
    fn what_does_not_decide_the_weights_may_change() {
        let mut other = recipe();
        other.name = "b".into();
        other.data.dir = Some("elsewhere".into());
        other.output.dir = Some("elsewhere".into());
        other.train.eval_every = 5;
        other.train.checkpoint_every_steps = 3;
        assert!(identity(&other).same_as(&identity(&recipe())).is_ok());
    }

    #[test]
    fn the_value_that_differs_is_named_with_both_values() {
        let then = identity(&recipe());
        let mut other = recipe();
        other.schedule.learning_rate = 0.5;
        let error = identity(&other).same_as(&then).unwrap_err().to_string();
        let expected = "schedule.learning_rate is 0.5, but the run was started with 0.001";
        assert_eq!(error, expected);
        let mut other = recipe();
        other.train.clip_norm = Some(1.0);
        let error = identity(&other).same_as(&then).unwrap_err().to_string();
        assert_eq!(error, "train.clip_norm is 1.0, but the run was started with not set");
        let error = Identity::new(&recipe(), [8; 32], None).same_as(&then).unwrap_err();
        assert!(error.key.starts_with("data "), "{error}");
        // The seed chooses the rows of a part of the data: it is what to name.
        let mut other = recipe();
        other.seed += 1;
        let error = Identity::new(&other, [8; 32], None).same_as(&then).unwrap_err();
        assert_eq!(error.key, "seed");
        let mut other = recipe();
        other.data.augment.shift = 2;
        let error = identity(&other).same_as(&then).unwrap_err().to_string();
        assert_eq!(error, "data.augment.shift is 2, but the run was started with not set");
        let mut further = other.clone();
        further.data.augment.shift = 3;
        let error = identity(&further).same_as(&identity(&other)).unwrap_err().to_string();
        assert_eq!(error, "data.augment.shift is 3, but the run was started with 2");
        let mut other = recipe();
        other.data.leave_out = vec![1];
        let error = Identity::new(&other, [8; 32], None).same_as(&then).unwrap_err().to_string();
        assert_eq!(error, "data.leave_out is [1], but the run was started with not set");
        let taught = Identity::new(&recipe(), [7; 32], Some(&[1]));
        assert_eq!((taught.teacher(), then.teacher()), (Some("01"), None));
        assert!(taught.same_but_for_teacher(&then).is_ok());
        assert!(taught.same_but_for_teacher(&identity(&other)).is_err());
        let error = taught.same_as(&then).unwrap_err();
        assert_eq!(error.key, "teacher (fingerprint)");
    }

    #[test]
    fn the_rule_of_an_ensemble_decides_the_weights_where_it_is_named() {
        let with = |ensemble| {
            let mut recipe = recipe();
            let section = TeacherSection::new(TeacherKind::Embedded);
            recipe.teacher = Some(TeacherSection { ensemble, ..section });
            identity(&recipe)
        };
        let (arithmetic, geometric) =
            (with(Some(EnsembleRule::Arithmetic)), with(Some(EnsembleRule::Geometric)));
        let error = geometric.same_but_for_teacher(&arithmetic).unwrap_err().to_string();
        let expected =
            "teacher.ensemble is \"geometric\", but the run was started with \"arithmetic\"";
        assert_eq!(error, expected);
        let error = geometric.same_as(&with(None)).unwrap_err().to_string();
        assert!(error.ends_with("started with not set"), "{error}");
        assert!(geometric.same_as(&with(Some(EnsembleRule::Geometric))).is_ok());
    }

    #[test]
    fn a_schedule_decides_the_weights_where_there_is_one() {
        let then = identity(&recipe());
        assert!(then.0.keys().all(|key| !key.starts_with("loss_schedule")));
        let mut other = recipe();
        other.loss_schedule.start_epoch = 2;
        let error = identity(&other).same_as(&then).unwrap_err().to_string();
        let expected = "loss_schedule.start_epoch is 2, but the run was started with not set";
        assert_eq!(error, expected);
        assert!(then.same_as(&identity(&other)).is_err());
    }

    #[test]
    fn it_survives_being_written() {
        let written = serde_json::to_string(&identity(&recipe())).unwrap();
        let read: Identity = serde_json::from_str(&written).unwrap();
        assert!(identity(&recipe()).same_as(&read).is_ok());
    }
}
