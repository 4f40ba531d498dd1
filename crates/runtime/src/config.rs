//! Settings from TOML: tables layered over one another, then read into a type.
//!
//! A type read here denies unknown fields (`#[serde(deny_unknown_fields)]`); the error names the
//! key by its full path and suggests the nearest one that exists.

use std::{fs, path::Path};

use serde::{Deserialize, de::DeserializeOwned};
use toml::{Table, Value};

/// Why settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// Its path.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{file}: not valid TOML: {reason}")]
    Syntax {
        /// Its path.
        file: String,
        /// Where and why.
        reason: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}`{}", nearest.as_ref().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())]
    UnknownKey {
        /// Its full path, dotted.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A value of the wrong type or outside its range.
    #[error("{key}: {reason}")]
    Value {
        /// The full path of the key, dotted.
        key: String,
        /// What is wrong with the value.
        reason: String,
    },
    /// A `key=value` argument that is none.
    #[error("--set {argument:?}: {reason}")]
    Assignment {
        /// The argument.
        argument: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a TOML file.
///
/// # Errors
/// If the file cannot be read or is not TOML; the error names the file and the line.
pub fn read_file(file: &Path) -> Result<Table, ConfigError> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file)
        .map_err(|source| ConfigError::Read { file: name.clone(), source })?;
    text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        file: name,
        reason: error.to_string(),
    })
}

/// Lays `over` on `base`: its tables are merged, its other values replace those of `base`.
pub fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Applies `key.path=value`. The value is read as TOML; what is not TOML is taken as a string, so
/// that names and paths need no quotes.
///
/// # Errors
/// If there is no `=`, a part of the key is empty, or the path goes through a value.
pub fn assign(table: &mut Table, argument: &str) -> Result<(), ConfigError> {
    let fault = |reason: &str| ConfigError::Assignment {
        argument: argument.to_owned(),
        reason: reason.to_owned(),
    };
    let (path, text) = argument.split_once('=').ok_or_else(|| fault("expected key=value"))?;
    let mut parts: Vec<&str> = path.split('.').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(fault("the key has an empty part"));
    }
    let last = parts.pop().unwrap_or_default();
    let mut at = table;
    for part in parts {
        let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(next) = next else {
            return Err(fault(&format!("`{part}` is a value, not a section")));
        };
        at = next;
    }
    at.insert(last.to_owned(), parse_value(text.trim()));
    Ok(())
}

fn parse_value(text: &str) -> Value {
    toml::de::ValueDeserializer::parse(text)
        .and_then(Value::deserialize)
        .unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// Reads settings from a table.
///
/// # Errors
/// On an unknown key, a missing one, or a value of the wrong type; the key is named by its path.
pub fn read<T: DeserializeOwned>(table: Table) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        explain(&path, error.inner().message())
    })
}

/// Serde's message about a key below the one that is being read, for a `deserialize_with` that
/// knows more of the place than serde does: `key` is relative, dotted, and may be empty.
/// [`read`] names the whole path.
pub fn below(key: &str, message: &str) -> String {
    if key.is_empty() { message.to_owned() } else { format!("{BELOW}{key}`: {message}") }
}

/// What a message of [`below`] starts with.
const BELOW: &str = "below at `";

/// Turns serde's message into one that speaks of keys.
fn explain(path: &str, message: &str) -> ConfigError {
    let inner = message.trim().strip_prefix(BELOW).and_then(|rest| rest.split_once("`: "));
    if let Some((key, message)) = inner {
        return explain(
            &if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") },
            message,
        );
    }
    let Some((unknown, known)) = unknown_field(message) else {
        let key = if path.is_empty() { "configuration".to_owned() } else { path.to_owned() };
        return ConfigError::Value { key, reason: message.trim().to_owned() };
    };
    // The path ends with the unknown key itself or with the section that it stands in.
    let section = match path.strip_suffix(unknown) {
        Some("") => "",
        Some(before) => before.strip_suffix('.').unwrap_or(path),
        None => path,
    };
    let full = |key: &str| {
        if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
    };
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(unknown, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(2))
        .map(|(_, candidate)| full(candidate));
    ConfigError::UnknownKey { key: full(unknown), nearest }
}

/// The unknown field and the known ones of serde's message "unknown field `a`, expected one of `b`,
/// `c`" (also "expected `b`", and "there are no fields").
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.trim().strip_prefix("unknown field ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    Some((unknown, quoted.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        name: String,
        #[serde(default)]
        limits: Limits,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        max_rows: u32,
        path: Option<String>,
    }

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn later_layers_win_and_sections_merge() {
        let mut settings = table("name = 'a'\n[limits]\nmax_rows = 1\npath = 'p'");
        overlay(&mut settings, table("[limits]\nmax_rows = 2"));
        assign(&mut settings, "name=b").unwrap();
        let read: Settings = read(settings).unwrap();
        let limits = Limits { max_rows: 2, path: Some("p".into()) };
        assert_eq!(read, Settings { name: "b".into(), limits });
    }

    #[test]
    fn an_unknown_key_suggests_the_nearest() {
        let error = read::<Settings>(table("name = 'a'\n[limits]\nmax_row = 1")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown key `limits.max_row`; did you mean `limits.max_rows`?"
        );
        let error = read::<Settings>(table("nam = 'a'")).unwrap_err();
        assert_eq!(error.to_string(), "unknown key `nam`; did you mean `name`?");
    }

    #[test]
    fn an_unknown_key_that_the_section_ends_with_is_named_in_full() {
        for key in ["s", "mits", "limits"] {
            let error = read::<Settings>(table(&format!("name = 'a'\n[limits]\n{key} = 1")));
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with(&format!("unknown key `limits.{key}`")), "{error}");
        }
        // As a section that serde knows no place in reports it.
        for (message, expected) in [
            ("unknown field `e`, expected `kind`", "unknown key `schedule.e`"),
            (&below("e", "unknown field `e`, expected `kind`"), "unknown key `schedule.e`"),
            (&below("a.b", "invalid type: integer `1`"), "schedule.a.b: invalid type: integer `1`"),
            (&below("", "missing field `a`"), "schedule: missing field `a`"),
        ] {
            assert_eq!(explain("schedule", message).to_string(), expected);
        }
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        let error = read::<Settings>(table("name = 'a'\n[limits]\nmax_rows = 'many'")).unwrap_err();
        assert!(error.to_string().starts_with("limits.max_rows: "), "{error}");
        let error = read::<Settings>(table("name = 'a'\nlimits = { max_rows = -1 }")).unwrap_err();
        assert!(error.to_string().starts_with("limits.max_rows: "), "{error}");
    }

    #[test]
    fn assignments_take_toml_or_a_bare_string() {
        let mut settings = Table::new();
        for argument in ["a.b=3", "a.c=[1, 2]", "d=some/path", "e=\"3\"", "f=", "g=true"] {
            assign(&mut settings, argument).unwrap();
        }
        let expected = "d = 'some/path'\ne = '3'\nf = ''\ng = true\n[a]\nb = 3\nc = [1, 2]";
        assert_eq!(settings, table(expected));
        for argument in ["noequals", "=1", "a..b=1", "d.x=1"] {
            let error = assign(&mut settings, argument).unwrap_err();
            assert!(error.to_string().contains(argument), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_toml_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("teacher.toml");
        fs::write(&file, "listen = \n").unwrap();
        let error = read_file(&file).unwrap_err().to_string();
        assert!(error.contains("teacher.toml") && error.contains("line 1"), "{error}");
        assert!(read_file(&folder.path().join("none.toml")).is_err());
    }
}
