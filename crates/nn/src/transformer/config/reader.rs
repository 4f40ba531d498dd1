//! Reading a Hugging Face `config.json`: keys that are absent have the default of transformers.

use serde_json::{Map, Value};

use super::spec::Activation;
use crate::error::ModelError;

/// One JSON object, and the name that its keys are told by in errors.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    object: &'a Map<String, Value>,
    prefix: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, prefix: "" }
    }

    /// The object under `key`, if it is one; keys within it are told as `prefix.key`.
    pub(super) fn nested(&self, key: &str, prefix: &'a str) -> Result<Option<Self>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self { object, prefix })),
            Some(_) => Err(self.fault(key, "an object, or null")),
        }
    }

    /// None for a key that is absent or null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    /// An error for what `key` holds.
    pub(super) fn fault(&self, key: &str, expected: &str) -> ModelError {
        let value = self.object.get(key).map_or("missing".to_owned(), short);
        let dot = if self.prefix.is_empty() { "" } else { "." };
        let field = format!("{}{dot}{key}", self.prefix);
        ModelError::Config { field, value, expected: expected.to_owned() }
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(self.fault(key, "a whole number, 0 or more")),
            },
        }
    }

    /// At least 1.
    pub(super) fn size(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        match self.optional_size(key)? {
            Some(0) => Err(self.fault(key, "at least 1")),
            found => Ok(found.unwrap_or(default)),
        }
    }

    /// `pad_token_id`, where it is a token: some files hold -1.
    pub(super) fn padding(&self, default: Option<usize>, vocab: usize) -> Option<usize> {
        let found = match self.object.get("pad_token_id") {
            None => default,
            Some(value) => value.as_u64().and_then(|id| usize::try_from(id).ok()),
        };
        found.filter(|&id| id < vocab)
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => Err(self.fault(key, "a finite number")),
            },
        }
    }

    /// Above 0, in the f32 that it is computed with, too.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.optional_number(key)? {
            Some(x) if x <= 0.0 => Err(self.fault(key, "a finite number above 0")),
            Some(x) if !(x as f32).is_normal() => Err(self.fault(key, "1.2e-38 to 3.4e38")),
            found => Ok(found),
        }
    }

    /// A probability of dropout.
    pub(super) fn dropout(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        match self.optional_number(key)? {
            Some(p) if !(0.0..1.0).contains(&(p as f32)) => {
                Err(self.fault(key, "at least 0 and below 1"))
            }
            found => Ok(found.map_or(default, |p| p as f32)),
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.fault(key, "true or false")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.fault(key, "a string")),
        }
    }

    /// Names, one for each of something.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let names = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        names.map_or_else(|| Err(self.fault(key, "a list of strings")), |names| Ok(Some(names)))
    }

    pub(super) fn activation(
        &self,
        key: &str,
        default: Activation,
    ) -> Result<Activation, ModelError> {
        match self.text(key)? {
            None => Ok(default),
            Some("relu") => Ok(Activation::Relu),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some(_) => {
                Err(self.fault(key, "relu, silu, swish, gelu, gelu_new or gelu_pytorch_tanh"))
            }
        }
    }

    /// Number of classes: of `id2label`, which transformers writes instead of `num_labels`.
    pub(super) fn labels(&self) -> Result<usize, ModelError> {
        let named = match self.get("id2label") {
            None => None,
            Some(Value::Object(names)) => Some(names.len()),
            Some(_) => return Err(self.fault("id2label", "an object of names")),
        };
        let counted = self.optional_size("num_labels")?;
        match (named, counted) {
            (Some(named), Some(counted)) if named != counted => {
                Err(self.fault("num_labels", &format!("{named}, the length of id2label")))
            }
            (found, other) => match found.or(other).unwrap_or(2) {
                n if n >= 2 => Ok(n),
                _ => Err(self.fault(
                    if found.is_some() { "id2label" } else { "num_labels" },
                    "2 classes or more",
                )),
            },
        }
    }
}

/// A value for an error, cut where it is long.
fn short(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > 80 {
        text.truncate(text.floor_char_boundary(77));
        text.push_str("...");
    }
    text
}
