//! Files to documents.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{chat::ChatTemplate, error::TextError};
use crate::data::{Cell, read_texts};
use crate::text::{
    classes::{Classes, Label},
    recipe::{OnFault, TextData, TextFormat},
};

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
    /// Where documents are classified.
    pub(super) class: Option<u32>,
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
        classes: Option<&Classes>,
    ) -> Result<(Documents, Documents), TextError> {
        let chat = match &data.messages_field {
            None => None,
            Some(_) => {
                let folder = tokenizer.parent().unwrap_or(Path::new("."));
                Some(ChatTemplate::load(data.chat_template.as_deref(), folder)?)
            }
        };
        let format = Format { data, chat: chat.as_ref(), classes };
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
    /// Of documents that are classified.
    classes: Option<&'a Classes>,
}

impl<'a> Format<'a> {
    /// The columns of a table that hold texts.
    fn columns(&self) -> Vec<&'a str> {
        match (&self.data.prompt_field, &self.data.completion_field) {
            (Some(prompt), Some(completion)) => vec![prompt, completion],
            _ => vec![self.data.text_field()],
        }
    }
}

/// What is read of one document: its parts and its class.
type Content = (Vec<Part>, Option<u32>);

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
                let rows = read_texts(bytes, &format.columns(), data.label_field.as_deref())
                    .map_err(|reason| TextError::Table { path: path.to_owned(), reason })?;
                for (row, number) in rows.into_iter().zip(1..) {
                    self.take(path, number, from_row(row, format), data)?;
                }
                Ok(())
            }
            TextFormat::Tsv => self.read_tsv(path, bytes, format),
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

    /// One document a line, after a line with the names of the columns.
    fn read_tsv(&mut self, path: &Path, bytes: &[u8], format: Format<'_>) -> Result<(), TextError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let lines = bytes.split(|byte| *byte == b'\n');
        let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut lines = lines.zip(1..).filter(|(line, _)| !line.is_empty());
        let cells = |line| <[u8]>::split(line, |byte| *byte == b'\t').collect::<Vec<&[u8]>>();
        let header = lines.next().map(|(line, _)| cells(line)).unwrap_or_default();
        let wanted = format.columns().into_iter().chain(format.data.label_field.as_deref());
        let find = |name: &str| {
            let at = header.iter().position(|column| *column == name.as_bytes());
            at.ok_or_else(|| {
                let columns: Vec<_> = header.iter().map(|c| String::from_utf8_lossy(c)).collect();
                let reason = format!(
                    "the columns are {columns:?}, expected {name:?} among them, as data.*_field says"
                );
                TextError::Table { path: path.to_owned(), reason }
            })
        };
        let columns = wanted.map(find).collect::<Result<Vec<_>, _>>()?;
        for (line, number) in lines {
            let cells = cells(line);
            let content = if cells.len() == header.len() {
                let cell = |&at: &usize| Cell::Text(cells[at].to_vec());
                from_row(columns.iter().map(cell).collect(), format)
            } else {
                let (found, expected) = (cells.len(), header.len());
                let reason = format!("{found} columns, expected {expected}, those of line 1");
                Err(Fault { reason, utf8: false })
            };
            self.take(path, number, content, format.data)?;
        }
        Ok(())
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
            let content = document.map(|text| (vec![Part { text, learn: true }], None));
            self.take(path, line, content, data)?;
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
        content: Result<Content, Fault>,
        data: &TextData,
    ) -> Result<(), TextError> {
        let file = path.to_owned();
        match content {
            Ok((parts, class)) => {
                let joined = data.messages_field.is_some();
                self.documents.push(Document { file, line, parts, joined, class });
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

    /// The last part of the documents; of a single one, the last part of its text; where they are
    /// classified, documents evenly spread, as files may be sorted by class.
    fn split_off(&mut self, fraction: f64) -> Self {
        let kept = |count: usize| ((count as f64 * (1.0 - fraction)).floor() as usize).min(count);
        let mut rest = Self::default();
        match self.documents.as_mut_slice() {
            [Document { file, line, parts, joined, class: None }] if parts.len() == 1 => {
                let text = &mut parts[0].text;
                let at = text.floor_char_boundary(kept(text.len()));
                let line = *line + text[..at].bytes().filter(|byte| *byte == b'\n').count() as u64;
                let tail = Part { text: text.split_off(at), learn: parts[0].learn };
                let (file, joined) = (file.clone(), *joined);
                let parts = vec![tail];
                rest.documents.push(Document { file, line, parts, joined, class: None });
            }
            [Document { class: Some(_), .. }, ..] => {
                let all = std::mem::take(&mut self.documents);
                for (at, document) in all.into_iter().enumerate() {
                    let own = if kept(at + 1) > kept(at) { &mut *self } else { &mut rest };
                    own.documents.push(document);
                }
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

/// One row of a table: the cells of [`Format::columns`] and, behind them, of the label.
fn from_row(row: Vec<Cell>, format: Format<'_>) -> Result<Content, Fault> {
    let (data, names) = (format.data, format.columns());
    let last = names.len() - 1;
    let names = names.into_iter().chain(data.label_field.as_deref());
    // Each as a text, and whether it is a number.
    let text = |(value, name): (Cell, &str)| match value {
        Cell::Null => Err(Fault { reason: format!("{name:?} is null"), utf8: false }),
        Cell::Number(number) => Ok((number.to_string(), true)),
        Cell::Text(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok((text, false)),
            Err(error) => Err(not_utf8(&error.utf8_error())),
        },
    };
    let mut texts = row.into_iter().zip(names).map(text).collect::<Result<Vec<_>, _>>()?;
    let label = texts.drain(last + 1..).next();
    let label = label.as_ref().map(|(text, number)| match number {
        true => Label::Number(text),
        false => Label::Text(text),
    });
    let part = |(at, (text, _))| Part { text, learn: at == last || !data.completions_only() };
    let parts = texts.into_iter().enumerate().map(part).collect();
    Ok((parts, class(label, format.classes)?))
}

/// The class that a label is about, where documents are classified.
fn class(label: Option<Label<'_>>, classes: Option<&Classes>) -> Result<Option<u32>, Fault> {
    let (Some(label), Some(classes)) = (label, classes) else { return Ok(None) };
    classes.find(label).map(Some).map_err(|reason| Fault { reason, utf8: false })
}

/// One line of JSON: an object with a text, with a prompt and a completion, or with a conversation.
fn parse(line: &[u8], Format { data, chat, classes }: Format<'_>) -> Result<Content, Fault> {
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
        let parts = chat.parts(messages, !data.completions_only()).map_err(fault)?;
        return Ok((parts, None));
    }
    let number;
    let label = match data.label_field.as_ref().map(|name| (name, object.get(name))) {
        None => None,
        Some((_, Some(Value::String(label)))) => Some(Label::Text(label)),
        Some((_, Some(Value::Number(label)))) => {
            number = label.to_string();
            Some(Label::Number(&number))
        }
        Some((name, Some(_))) => {
            return Err(fault(format!("{name:?} is not a string or a number")));
        }
        Some((name, None)) => return Err(fault(format!("no {name:?} in the object"))),
    };
    let parts = match (&data.prompt_field, &data.completion_field) {
        (Some(prompt), Some(completion)) => vec![
            Part { text: field(prompt)?, learn: !data.completions_only() },
            Part { text: field(completion)?, learn: true },
        ],
        _ => vec![Part { text: field(data.text_field())?, learn: true }],
    };
    Ok((parts, class(label, classes)?))
}
