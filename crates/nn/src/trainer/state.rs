//! Saving a trainer and going on from it.
//!
//! A state is a directory of three files: `model.safetensors`, `optimizer.safetensors` and
//! `trainer.json`, which is written last and holds the digests of the other two, so that files of
//! different saves are never taken for one state.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Trainer;
use crate::error::{ModelError, StateError};
use crate::io::{Tensors, check_finite, parse_tensors, tensor_bytes, write_atomic, write_tensors};
use crate::model::WEIGHTS_FILE;
use crate::optim::Optimizer;

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const TRAINER_FILE: &str = "trainer.json";

/// `trainer.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Steps taken.
    step: u64,
    /// Where the stream of dropout masks stands, in words.
    dropout_position: u64,
    /// SHA-256 of `model.safetensors`, in hex.
    model_sha256: String,
    /// SHA-256 of `optimizer.safetensors`, in hex.
    optimizer_sha256: String,
    /// The whole configuration: another one is refused by the name of what differs.
    config: Value,
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All that a trainer is but its configuration's values.
pub(super) struct Snapshot<'a> {
    /// As JSON: another one is refused when the state is loaded.
    pub(super) config: Value,
    pub(super) weights: &'a Tensors,
    pub(super) optimizer: &'a Optimizer,
    pub(super) dropout_position: u64,
}

/// What [`Snapshot::load`] gives.
pub(super) struct Restored {
    pub(super) weights: Tensors,
    pub(super) optimizer: Optimizer,
    pub(super) dropout_position: u64,
}

impl Snapshot<'_> {
    /// Writes three files into `dir`, each replaced whole.
    pub(super) fn save(&self, dir: &Path) -> Result<(), StateError> {
        make_dir(dir)?;
        let encode = |file: &str, tensors: &Tensors| {
            check_finite(&dir.join(file), tensors)?;
            tensor_bytes(tensors)
        };
        let model = encode(WEIGHTS_FILE, self.weights)?;
        let optimizer = encode(OPTIMIZER_FILE, &self.optimizer.state())?;
        let path = dir.join(TRAINER_FILE);
        let record = Record {
            step: self.optimizer.steps(),
            dropout_position: self.dropout_position,
            model_sha256: hex(&model),
            optimizer_sha256: hex(&optimizer),
            config: self.config.clone(),
        };
        let json = |source| ModelError::Json { path: path.clone(), source };
        let mut text = serde_json::to_vec_pretty(&record).map_err(json)?;
        text.push(b'\n');
        write_atomic(&dir.join(WEIGHTS_FILE), &model)?;
        write_atomic(&dir.join(OPTIMIZER_FILE), &optimizer)?;
        Ok(write_atomic(&path, &text)?)
    }
}

impl Restored {
    /// Reads what [`Snapshot::save`] wrote under the same configuration, for weights of these shapes
    /// and an optimizer like `optimizer`.
    pub(super) fn load(
        dir: &Path,
        expected: &Value,
        shapes: &BTreeMap<String, Vec<usize>>,
        optimizer: &Optimizer,
    ) -> Result<Self, StateError> {
        let path = dir.join(TRAINER_FILE);
        let text = read(&path)?;
        let json = |source| ModelError::Json { path: path.clone(), source };
        let record: Record = serde_json::from_slice(&text).map_err(json)?;
        if let Some((field, found, expected)) = first_difference("", &record.config, expected) {
            return Err(StateError::OtherConfiguration { path, field, found, expected });
        }
        // Read once: what is taken in is what the digest was computed of.
        let read_checked = |file: &str, digest: &str| {
            let path = dir.join(file);
            let bytes = read(&path)?;
            let found = hex(&bytes);
            if found != digest {
                return Err(StateError::Mixed { path, found, expected: digest.to_owned() });
            }
            Ok((path, bytes))
        };
        let (weights_path, weights) = read_checked(WEIGHTS_FILE, &record.model_sha256)?;
        let (path, state) = read_checked(OPTIMIZER_FILE, &record.optimizer_sha256)?;
        let weights = parse_tensors(&weights_path, &weights, shapes)?;
        let state = parse_tensors(&path, &state, &optimizer.state_shapes())?;
        let optimizer = optimizer.restored(&path, record.step, state)?;
        Ok(Self { weights, optimizer, dropout_position: record.dropout_position })
    }
}

/// A trainer's configuration as JSON.
pub(super) fn config_json(dir: &Path, config: &impl Serialize) -> Result<Value, ModelError> {
    let path = dir.join(TRAINER_FILE);
    serde_json::to_value(config).map_err(|source| ModelError::Json { path, source })
}

impl Trainer {
    /// Writes `config.json` and `model.safetensors` into `dir`, which is made if need be. Equal
    /// models give equal bytes.
    ///
    /// # Errors
    ///
    /// [`ModelError::NonFiniteWeight`] after an update that overflowed, or [`ModelError::Io`].
    pub fn save_model(&self, dir: &Path) -> Result<(), ModelError> {
        make_dir(dir)?;
        write_tensors(&dir.join(WEIGHTS_FILE), &self.model.tensors()?)?;
        self.config.model.save(dir)
    }

    /// Writes all that [`Self::load_state`] needs into `dir`, which is made if need be. Each file
    /// is replaced whole; to keep the previous state until this one is complete, save into a
    /// directory of its own.
    ///
    /// # Errors
    ///
    /// [`ModelError::NonFiniteWeight`] after an update that overflowed, or [`ModelError::Io`].
    pub fn save_state(&self, dir: &Path) -> Result<(), StateError> {
        let snapshot = Snapshot {
            config: config_json(dir, &self.config)?,
            weights: &self.model.tensors()?,
            optimizer: &self.optimizer,
            dropout_position: self.rng.position(),
        };
        snapshot.save(dir)
    }

    /// Goes on from the state in `dir`: the following steps give the bytes that the trainer which
    /// saved it would have given. After an error the trainer is as it was.
    ///
    /// # Errors
    ///
    /// [`StateError::OtherConfiguration`] if it was saved under another configuration,
    /// [`StateError::Mixed`] if its files are not of one save, or why a file cannot be read.
    pub fn load_state(&mut self, dir: &Path) -> Result<(), StateError> {
        let config = config_json(dir, &self.config)?;
        let shapes = self.config.model.tensors();
        let restored = Restored::load(dir, &config, &shapes, &self.optimizer)?;
        self.model.set_tensors(&restored.weights)?;
        self.optimizer = restored.optimizer;
        self.rng.seek(restored.dropout_position);
        Ok(())
    }
}

pub(super) fn make_dir(dir: &Path) -> Result<(), ModelError> {
    std::fs::create_dir_all(dir).map_err(|source| ModelError::Io { path: dir.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })
}

/// The first place, in order of name, where two JSON values differ: its dotted path and both
/// values.
fn first_difference(
    path: &str,
    found: &Value,
    expected: &Value,
) -> Option<(String, String, String)> {
    let (Value::Object(a), Value::Object(b)) = (found, expected) else {
        let differs = found != expected;
        return differs.then(|| (path.to_owned(), found.to_string(), expected.to_string()));
    };
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let of = |object: &serde_json::Map<String, Value>| {
            object.get(key).cloned().unwrap_or(Value::Null)
        };
        first_difference(&path, &of(a), &of(b))
    })
}
