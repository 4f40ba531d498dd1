//! Files to documents.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{chat::ChatTemplate, error::TextError};
use crate::data::read_texts;
use crate::text::recipe::{OnFault, TextData, TextFormat};

/// A piece of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its text.
    pub text: String,
    /// Whether its tokens are learnt.
    pub learn: bool,
}

/// A document and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) file: PathBuf,
    /// Counted from 1.
    pub(super) line: u64,
    pub(super) parts: Vec<Part>,
    /// Whether the parts are one text, to be tokenised as a whole.
    pub(super) joined: bool,
}

/// Documents and what was passed over on the way to them.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    pub(super) documents: Vec<Document>,
    pub(super) malformed: u64,
    pub(super) invalid_utf8: u64,
}

/// The bytes of all files.
pub(super) struct Files {
    train: Vec<(PathBuf, Vec<u8>)>,
    validation: Vec<(PathBuf, Vec<u8>)>,
}

impl Files {
    pub(super) fn read(data: &TextData) -> Result<Self, TextError> {
        let read = |paths: &[PathBuf]| {
            let one = |path: &PathBuf| match fs::read(path) {
                Ok(bytes) => Ok((path.clone(), bytes)),
                Err(source) => Err(TextError::Io { path: path.clone(), source }),
            };
            paths.iter().map(one).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { train: read(&data.train_files)?, validation: read(&data.validation_files)? })
    }

    /// Hands the digest of every file to `part`.
    pub(super) fn hash(&self, part: &mut impl FnMut(&[u8])) {
        for files in [&self.train, &self.validation] {
            part(&(files.len() as u64).to_le_bytes());
            files.iter().for_each(|(_, bytes)| part(&Sha256::digest(bytes)));
        }
    }

    /// Documents to train and to validate on.
    pub(super) fn documents(
        &self,
        data: &TextData,
        tokenizer: &Path,
    ) -> Result<(Documents, Documents), TextError> {
        let chat = match &data.messages_field {
            None => None,
            Some(_) => {
                let folder = tokenizer.parent().unwrap_or(Path::new("."));
                Some(ChatTemplate::load(data.chat_template.as_deref(), folder)?)
            }
        };
        let format = Format { data, chat: chat.as_ref() };
        let mut train = Documents::default();
        for (path, bytes) in &self.train {
            train.read(path, bytes, format)?;
        }
        if let Some(fraction) = data.validation_fraction {
            let validation = train.split_off(fraction);
            return Ok((train, validation));
        }
        let mut validation = Documents::default();
        for (path, bytes) in &self.validation {
            validation.read(path, bytes, format)?;
        }
        Ok((train, validation))
    }
}

/// How documents are read.
#[derive(Clone, Copy)]
struct Format<'a> {
    data: &'a TextData,
    /// Of conversations.
    chat: Option<&'a ChatTemplate>,
}

/// What is wrong with a document, and the key that decides what happens to it.
struct Fault {
    reason: String,
    utf8: bool,
}

impl Documents {
    fn read(&mut self, path: &Path, bytes: &[u8], format: Format<'_>) -> Result<(), TextError> {
        let data = format.data;
        match data.format {
            TextFormat::Text => self.read_text(path, bytes, data),
            TextFormat::Parquet => {
                let names: Vec<&str> = match (&data.prompt_field, &data.completion_field) {
                    (Some(prompt), Some(completion)) => vec![prompt, completion],
                    _ => vec![data.text_field()],
                };
                let rows = read_texts(bytes, &names)
                    .map_err(|reason| TextError::Parquet { path: path.to_owned(), reason })?;
                for (row, number) in rows.into_iter().zip(1..) {
                    self.take(path, number, from_row(row, &names, data), data)?;
                }
                Ok(())
            }
            TextFormat::Jsonl => {
                for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    // A last line that ends the file, and lines between objects.
                    if line.iter().all(u8::is_ascii_whitespace) {
                        continue;
                    }
                    self.take(path, number, parse(line, format), data)?;
                }
                Ok(())
            }
        }
    }

    /// One document a file, or several between separators.
    fn read_text(&mut self, path: &Path, bytes: &[u8], data: &TextData) -> Result<(), TextError> {
        let separator = data.separator.as_deref().unwrap_or_default().as_bytes();
        let mut rest = bytes;
        let mut line = 1;
        loop {
            let end = match separator {
                [] => None,
                separator => rest.windows(separator.len()).position(|at| at == separator),
            };
            let text = &rest[..end.unwrap_or(rest.len())];
            let document = match std::str::from_utf8(text) {
                // Whitespace around a separator belongs to neither document.
                Ok(text) if !separator.is_empty() => Ok(text.trim().to_owned()),
                Ok(text) => Ok(text.to_owned()),
                Err(error) => Err(not_utf8(&error)),
            };
            let parts = document.map(|text| vec![Part { text, learn: true }]);
            self.take(path, line, parts, data)?;
            let Some(end) = end else { return Ok(()) };
            let next = end + separator.len();
            line += rest[..next].iter().filter(|byte| **byte == b'\n').count() as u64;
            rest = &rest[next..];
        }
    }

    fn take(
        &mut self,
        path: &Path,
        line: u64,
        parts: Result<Vec<Part>, Fault>,
        data: &TextData,
    ) -> Result<(), TextError> {
        let file = path.to_owned();
        match parts {
            Ok(parts) => {
                let joined = data.messages_field.is_some();
                self.documents.push(Document { file, line, parts, joined });
            }
            Err(Fault { reason, utf8 }) => {
                let (what, key, count) = match utf8 {
                    true => (data.on_invalid_utf8, "data.on_invalid_utf8", &mut self.invalid_utf8),
                    false => (data.on_malformed(), "data.on_malformed", &mut self.malformed),
                };
                match what {
                    OnFault::Skip => *count += 1,
                    OnFault::Error => return Err(TextError::Document { file, line, reason, key }),
                }
            }
        }
        Ok(())
    }

    /// The last part of the documents; of a single one, the last part of its text.
    fn split_off(&mut self, fraction: f64) -> Self {
        let kept = |count: usize| ((count as f64 * (1.0 - fraction)).floor() as usize).min(count);
        let mut rest = Self::default();
        match self.documents.as_mut_slice() {
            [Document { file, line, parts, joined }] if parts.len() == 1 => {
                let text = &mut parts[0].text;
                let at = text.floor_char_boundary(kept(text.len()));
                let line = *line + text[..at].bytes().filter(|byte| *byte == b'\n').count() as u64;
                let tail = Part { text: text.split_off(at), learn: parts[0].learn };
                let (file, joined) = (file.clone(), *joined);
                rest.documents.push(Document { file, line, parts: vec![tail], joined });
            }
            documents => {
                let at = kept(documents.len());
                rest.documents = self.documents.split_off(at);
            }
        }
        rest
    }
}

fn not_utf8(error: &std::str::Utf8Error) -> Fault {
    let reason = format!("not UTF-8: {error}");
    Fault { reason, utf8: true }
}

/// One row of a table, of the columns `names`.
fn from_row(
    row: Vec<Option<Vec<u8>>>,
    names: &[&str],
    data: &TextData,
) -> Result<Vec<Part>, Fault> {
    let last = row.len().saturating_sub(1);
    let part = |(at, (value, name)): (usize, (Option<Vec<u8>>, &&str))| {
        let bytes =
            value.ok_or_else(|| Fault { reason: format!("{name:?} is null"), utf8: false })?;
        let text = String::from_utf8(bytes).map_err(|error| not_utf8(&error.utf8_error()))?;
        Ok(Part { text, learn: at == last || !data.completions_only() })
    };
    row.into_iter().zip(names).enumerate().map(part).collect()
}

/// One line of JSON: an object with a text, with a prompt and a completion, or with a conversation.
fn parse(line: &[u8], Format { data, chat }: Format<'_>) -> Result<Vec<Part>, Fault> {
    let text = std::str::from_utf8(line).map_err(|error| not_utf8(&error))?;
    let fault = |reason: String| Fault { reason, utf8: false };
    let value: Value = serde_json::from_str(text).map_err(|error| {
        // The number of the line is that of the file, told by the caller.
        let words = error.to_string();
        let place = words.find(" at line").unwrap_or(words.len());
        fault(format!("not JSON: {}, column {}", &words[..place], error.column()))
    })?;
    let Value::Object(object) = &value else {
        return Err(fault("not a JSON object".to_owned()));
    };
    let field = |name: &str| match object.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(fault(format!("{name:?} is not a string"))),
        None => Err(fault(format!("no {name:?} in the object"))),
    };
    if let (Some(name), Some(chat)) = (&data.messages_field, chat) {
        let Some(Value::Array(messages)) = object.get(name) else {
            return Err(fault(format!("no list {name:?} in the object")));
        };
        let whole = |message: &Value| {
            let is_text = |key: &str| message.get(key).is_some_and(Value::is_string);
            is_text("role") && is_text("content")
        };
        if let Some(at) = messages.iter().position(|message| !whole(message)) {
            return Err(fault(format!(
                "{name}[{at}] has no \"role\" and \"content\" that are strings"
            )));
        }
        return chat.parts(messages, !data.completions_only()).map_err(fault);
    }
    match (&data.prompt_field, &data.completion_field) {
        (Some(prompt), Some(completion)) => Ok(vec![
            Part { text: field(prompt)?, learn: !data.completions_only() },
            Part { text: field(completion)?, learn: true },
        ]),
        _ => Ok(vec![Part { text: field(data.text_field())?, learn: true }]),
    }
}
