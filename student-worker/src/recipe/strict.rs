//! Refuses unknown keys in sections whose type ignores them.
//!
//! A model's configuration ignores keys that it does not know, since other tools keep theirs in the
//! same `config.json`. In a recipe such a key is a typo.

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _},
};
use stillhouse_runtime::config::below;
use toml::{Table, Value};

/// Keys that say which variant a section is. Without them none of the other keys can be read.
const TAGS: [&str; 2] = ["kind", "model_type"];

/// Reads a section, and refuses it if a key of it does not come back when what was read is written.
///
/// # Errors
/// In the words of serde's own errors, with the key [`below`] the section.
pub(crate) fn section<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Serialize + DeserializeOwned,
{
    let given = Table::deserialize(deserializer)?;
    let read: T = read(&given).map_err(|message| {
        let (path, within) = culprit::<T>(&given, &message);
        // A required key that is missing may be there under a name that is nearly right.
        match misspelt(&message, within) {
            Some((key, meant)) => unknown(&path, &key, [meant]),
            None => D::Error::custom(below(&path.join("."), &message)),
        }
    })?;
    let known = Table::try_from(&read).map_err(D::Error::custom)?;
    match first_unknown(&given, &known, &mut Vec::new()) {
        Some((path, key, candidates)) => Err(unknown(&path, &key, candidates)),
        None => Ok(read),
    }
}

fn read<T: DeserializeOwned>(given: &Table) -> Result<T, String> {
    T::deserialize(Value::Table(given.clone())).map_err(|error| error.message().trim().to_owned())
}

/// Where the error is that reading `given` ends with: the path of its key, and the innermost table
/// on the way. Serde knows no path within a variant that is told apart by a key of its own, so keys
/// are taken away, one after the other, until the error is another one: the last of them caused it.
/// For a missing key the path is that of its table.
fn culprit<'a, T: DeserializeOwned>(given: &'a Table, message: &str) -> (Vec<String>, &'a Table) {
    let missing = message.starts_with("missing field");
    let (mut path, mut within) = (Vec::new(), given);
    loop {
        let mut rest = given.clone();
        let caused = |key: &&String| {
            if let Some(table) = table_at(&mut rest, &path) {
                table.remove(key.as_str());
            }
            read::<T>(&rest).err().as_deref() != Some(message)
        };
        let mut keys = within.keys().filter(|key| {
            !TAGS.contains(&key.as_str()) && (!missing || within[key.as_str()].is_table())
        });
        // Where no other key did, the tag did: its value names no variant.
        let tag = || within.keys().find(|key| TAGS.contains(&key.as_str()) && !missing);
        let Some(key) = keys.find(caused).or_else(tag) else { return (path, within) };
        path.push(key.clone());
        match &within[key] {
            Value::Table(table) => within = table,
            _ => return (path, within),
        }
    }
}

/// The table at a path that goes through tables only.
fn table_at<'a>(table: &'a mut Table, path: &[String]) -> Option<&'a mut Table> {
    path.iter().try_fold(table, |table, key| table.get_mut(key)?.as_table_mut())
}

/// The key that serde's "missing field `x`" is probably about, and x.
fn misspelt(message: &str, given: &Table) -> Option<(String, String)> {
    let missing = message.strip_prefix("missing field `")?.strip_suffix('`')?;
    let near = |key: &&String| strsim::damerau_levenshtein(key, missing) <= missing.len() / 3;
    Some((given.keys().find(near)?.clone(), missing.to_owned()))
}

/// The first key of `given` that `known` has not: the path of its table, its name, and what stands
/// there in `known`.
fn first_unknown(
    given: &Table,
    known: &Table,
    path: &mut Vec<String>,
) -> Option<(Vec<String>, String, Vec<String>)> {
    for (key, value) in given {
        match (value, known.get(key)) {
            (_, None) => {
                return Some((path.clone(), key.clone(), known.keys().cloned().collect()));
            }
            (Value::Table(given), Some(Value::Table(known))) => {
                path.push(key.clone());
                if let Some(found) = first_unknown(given, known, path) {
                    return Some(found);
                }
                path.pop();
            }
            (_, Some(_)) => {}
        }
    }
    None
}

/// In the words of serde's own error about unknown fields.
fn unknown<E: serde::de::Error>(
    path: &[String],
    key: &str,
    candidates: impl IntoIterator<Item = String>,
) -> E {
    let list: Vec<String> = candidates.into_iter().map(|known| format!("`{known}`")).collect();
    let message = format!("unknown field `{key}`, expected one of {}", list.join(", "));
    let path: Vec<&str> = path.iter().map(String::as_str).chain([key]).collect();
    E::custom(below(&path.join("."), &message))
}
