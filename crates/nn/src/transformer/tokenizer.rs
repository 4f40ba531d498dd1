//! What a model needs to know of its tokenizer: which it is, and how many tokens it has.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::error::ModelError;

/// File with the tokenizer in a model's directory.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A `tokenizer.json`, without its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizerInfo {
    /// SHA-256 of the file: tokenizers with another may cut text otherwise.
    pub sha256: [u8; 32],
    /// One more than the largest token id. Rows of an embedding beyond it are padding.
    pub size: usize,
}

impl TokenizerInfo {
    /// Of the tokenizer in a model's directory; none where it has no `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Io`], [`ModelError::Json`], or [`ModelError::ConfigFile`] for a vocabulary that is
    /// none.
    pub fn load(dir: &Path) -> Result<Option<Self>, ModelError> {
        let path = dir.join(TOKENIZER_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Self::parse(&path, &bytes).map(Some),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ModelError::Io { path, source }),
        }
    }

    /// Of the bytes of a file; `path` only names it.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let json = |source| ModelError::Json { path: path.to_owned(), source };
        let file: Value = serde_json::from_slice(bytes).map_err(json)?;
        let fault = |field: &str, expected: &str| {
            let value = if file.pointer(&format!("/{}", field.replace('.', "/"))).is_some() {
                "something else"
            } else {
                "missing"
            };
            ModelError::Config {
                field: field.to_owned(),
                value: value.to_owned(),
                expected: expected.to_owned(),
            }
            .in_file(path)
        };
        // A map from tokens to ids, or a list in the order of ids.
        let vocabulary = match file.pointer("/model/vocab") {
            Some(Value::Object(map)) => {
                map.values().map(id).try_fold(0, |most, id| Some(id?.max(most)))
            }
            Some(Value::Array(list)) => Some(list.len()),
            _ => None,
        };
        let expected = "a map from tokens to ids, or a list of tokens";
        let vocabulary = vocabulary.ok_or_else(|| fault("model.vocab", expected))?;
        let added = match file.get("added_tokens") {
            None | Some(Value::Null) => Some(0),
            Some(Value::Array(list)) => {
                let ids = list.iter().map(|token| token.get("id").and_then(id));
                ids.into_iter().try_fold(0, |most, id| Some(id?.max(most)))
            }
            Some(_) => None,
        };
        let added = added.ok_or_else(|| fault("added_tokens", "a list of tokens with an id"))?;
        let size = vocabulary.max(added);
        if size == 0 {
            return Err(fault("model.vocab", "at least one token"));
        }
        Ok(Self { sha256: Sha256::digest(bytes).into(), size })
    }
}

/// One more than a token's id; none for what is no id.
fn id(value: &Value) -> Option<usize> {
    value.as_u64().filter(|&id| id < 1 << 32).map(|id| id as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<usize, String> {
        let info = TokenizerInfo::parse(Path::new("t.json"), text.as_bytes());
        info.map(|info| info.size).map_err(|error| error.to_string())
    }

    #[test]
    fn the_size_is_that_of_the_largest_id() {
        assert_eq!(parse(r#"{"model": {"vocab": {"a": 0, "b": 7}}}"#), Ok(8));
        assert_eq!(parse(r#"{"model": {"vocab": [["a", -1.5], ["b", -2.0]]}}"#), Ok(2));
        let added =
            r#"{"added_tokens": [{"id": 9, "content": "x"}], "model": {"vocab": {"a": 0}}}"#;
        assert_eq!(parse(added), Ok(10));
    }

    #[test]
    fn faults_are_named() {
        for (text, expected) in [
            ("{}", "t.json: model.vocab is missing; expected a map"),
            (r#"{"model": {"vocab": 3}}"#, "model.vocab is something else"),
            (r#"{"model": {"vocab": {"a": -1}}}"#, "model.vocab is something else"),
            (r#"{"model": {"vocab": {"a": 99999999999}}}"#, "model.vocab is something else"),
            (r#"{"model": {"vocab": []}}"#, "expected at least one token"),
            (
                r#"{"model": {"vocab": ["a"]}, "added_tokens": [{}]}"#,
                "added_tokens is something else",
            ),
            ("{", "t.json"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
