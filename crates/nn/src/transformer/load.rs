//! Weights of a Hugging Face directory: one safetensors file, or shards and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::config::TransformerConfig;
use crate::error::ModelError;
use crate::io::{Tensors, check_finite, collect_tensors};
use crate::model::WEIGHTS_FILE;

/// Names the shard of every tensor.
const INDEX_FILE: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads every tensor that `config` asks for from `dir`, in f32: f16 and bf16 are widened, which is
/// exact.
///
/// # Errors
///
/// A [`ModelError`] that names the file, the tensor, what was found and what was expected.
pub(crate) fn read_weights(dir: &Path, config: &TransformerConfig) -> Result<Tensors, ModelError> {
    let expected = config.spec().tensors();
    let files = files(dir)?;
    let mut tensors = Tensors::new();
    for path in &files {
        let bytes =
            std::fs::read(path).map_err(|source| ModelError::Io { path: path.clone(), source })?;
        let redundant = |name: &str| config.spec().is_redundant(name);
        let own = collect_tensors(path, &bytes, &expected, redundant)?;
        if let Some(twice) = own.keys().find(|name| tensors.contains_key(*name)) {
            return Err(ModelError::ConfigFile {
                path: path.clone(),
                field: twice.clone(),
                value: "a tensor that another file of the model holds, too".to_owned(),
                expected: "each tensor in one file".to_owned(),
            });
        }
        tensors.extend(own);
    }
    if let Some((tensor, shape)) = expected.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        // Of several files the index is the one that should know.
        let path = if files.len() == 1 { files[0].clone() } else { dir.join(INDEX_FILE) };
        return Err(ModelError::MissingTensor {
            path,
            tensor: tensor.clone(),
            expected: shape.clone(),
        });
    }
    check_finite(dir, &tensors)?;
    Ok(tensors)
}

/// The safetensors files of a model: one that holds all of it, as transformers prefers it, or those of
/// an index.
fn files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let (whole, path) = (dir.join(WEIGHTS_FILE), dir.join(INDEX_FILE));
    if whole.is_file() {
        return Ok(vec![whole]);
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(vec![whole]);
        }
        Err(source) => return Err(ModelError::Io { path, source }),
    };
    let index: Index = serde_json::from_str(&text)
        .map_err(|source| ModelError::Json { path: path.clone(), source })?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    if let Some(shard) = shards.iter().find(|shard| !is_plain(shard)) {
        return Err(ModelError::ConfigFile {
            path,
            field: "weight_map".to_owned(),
            value: format!("{shard:?}"),
            expected: "names of files in the same directory".to_owned(),
        });
    }
    Ok(shards.into_iter().map(|shard| dir.join(shard)).collect())
}

/// Whether a name stays within its directory.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}
