//! Refuses unknown keys in sections whose type ignores them.
//!
//! A model's configuration ignores keys that it does not know, since other tools keep theirs in the
//! same `config.json`. In a recipe such a key is a typo.

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _},
};
use toml::{Table, Value};

/// Reads a section, and refuses it if a key of it does not come back when what was read is written.
///
/// # Errors
/// In the words of serde's own error about unknown fields.
pub(super) fn section<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Serialize + DeserializeOwned,
{
    let given = Table::deserialize(deserializer)?;
    let read = T::deserialize(Value::Table(given.clone())).map_err(|error| {
        let message = error.message().trim();
        // A required key that is missing may be there under a name that is nearly right.
        match misspelt(message, &given) {
            Some((key, meant)) => unknown(&key, [meant]),
            None => D::Error::custom(message),
        }
    })?;
    let known = Table::try_from(&read).map_err(D::Error::custom)?;
    match first_unknown(&given, &known, "") {
        Some((key, candidates)) => Err(unknown(&key, candidates)),
        None => Ok(read),
    }
}

/// The key that serde's "missing field `x`" is probably about, and x.
fn misspelt(message: &str, given: &Table) -> Option<(String, String)> {
    let missing = message.strip_prefix("missing field `")?.strip_suffix('`')?;
    let near = |key: &&String| strsim::damerau_levenshtein(key, missing) <= missing.len() / 3;
    Some((given.keys().find(near)?.clone(), missing.to_owned()))
}

/// The path of the first key of `given` that `known` has not, and what stands there in `known`.
fn first_unknown(given: &Table, known: &Table, prefix: &str) -> Option<(String, Vec<String>)> {
    given.iter().find_map(|(key, value)| match (value, known.get(key)) {
        (_, None) => {
            let candidates = known.keys().map(|known| format!("{prefix}{known}")).collect();
            Some((format!("{prefix}{key}"), candidates))
        }
        (Value::Table(given), Some(Value::Table(known))) => {
            first_unknown(given, known, &format!("{prefix}{key}."))
        }
        (_, Some(_)) => None,
    })
}

fn unknown<E: serde::de::Error>(key: &str, candidates: impl IntoIterator<Item = String>) -> E {
    let list: Vec<String> = candidates.into_iter().map(|known| format!("`{known}`")).collect();
    E::custom(format!("unknown field `{key}`, expected one of {}", list.join(", ")))
}
