//! Text as tokens: read, cut into documents, tokenised once, and kept.
//!
//! * `source`: files to documents, line by line; what is wrong with one is counted or an error, as
//!   the recipe says.
//! * `tokenize`: documents to token ids, each marked whether it is learnt.
//! * `cache`: the result in a file, under the checksum of all that it was made of.
//! * [`Corpus`]: all documents' tokens, one after the other.

mod cache;
mod chat;
mod error;
mod source;
mod tokenize;

use std::path::Path;

pub use error::TextError;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
pub use source::Part;
pub use tokenize::TextTokenizer;

use super::classes::Classes;
use super::recipe::{OnLong, TextData, TextFormat};

/// What became of the documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Documents that are in the corpus.
    pub documents: u64,
    /// Tokens of them.
    pub tokens: u64,
    /// Labels: tokens that a position before them predicts and the loss counts; of a classifier, one for
    /// each document.
    pub learnt: u64,
    /// Lines that are no document, passed over.
    pub malformed: u64,
    /// Documents that are not UTF-8, passed over.
    pub invalid_utf8: u64,
    /// Documents without a token to learn, or to read, passed over.
    pub empty: u64,
    /// Documents that are longer than a sequence: cut into several, cut off or passed over, as the
    /// recipe says.
    pub long: u64,
}

impl Counts {
    /// What was passed over, or cut, in words; none if nothing was.
    pub fn remarks(&self, on_long: OnLong) -> Option<String> {
        let long = match on_long {
            OnLong::Split => "longer than a sequence, cut into several",
            OnLong::Truncate => "longer than a sequence, cut off",
            OnLong::Skip => "longer than a sequence, passed over",
            OnLong::Error => "longer than a sequence",
        };
        let all = [
            (self.malformed, "malformed, passed over"),
            (self.invalid_utf8, "not UTF-8, passed over"),
            (self.empty, "without a token to learn, passed over"),
            (self.long, long),
        ];
        let words: Vec<String> =
            all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

/// Tokenised documents, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// Of all documents.
    pub(super) ids: Vec<u32>,
    /// Whether a token is one to learn.
    pub(super) learn: Vec<bool>,
    /// Where each document begins, and where the last one ends.
    pub(super) starts: Vec<usize>,
    /// The class of each document; none where tokens are what is learnt.
    pub(super) classes: Vec<u32>,
    /// What became of all documents.
    pub counts: Counts,
}

/// Training and validation text of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpora {
    /// To train on.
    pub train: Corpus,
    /// To measure the loss on.
    pub validation: Corpus,
}

impl Corpora {
    /// Reads the text that a recipe names, or what was made of it before. `classes` are those that
    /// `data.label_field` is about.
    ///
    /// # Errors
    /// If a file cannot be read, or holds what the recipe says is an error: with the file and line.
    pub fn read(
        data: &TextData,
        tokenizer: &TextTokenizer,
        classes: Option<&Classes>,
        cache: &Path,
    ) -> Result<Self, TextError> {
        let files = source::Files::read(data)?;
        let key = key(data, tokenizer, classes, &files);
        if let Some(found) = cache::read(cache, &key) {
            return Ok(found);
        }
        let (train, validation) = files.documents(data, tokenizer.path(), classes)?;
        let corpora = Self {
            train: tokenizer.corpus(data, &train)?,
            validation: tokenizer.corpus(data, &validation)?,
        };
        if let Err(error) = cache::write(cache, &key, &corpora) {
            // The next run tokenises again; this one has what it needs.
            tracing::warn!(%error, folder = %cache.display(), "the tokens cannot be kept");
        }
        Ok(corpora)
    }
}

/// SHA-256 over all that decides the tokens.
fn key(
    data: &TextData,
    tokenizer: &TextTokenizer,
    classes: Option<&Classes>,
    files: &source::Files,
) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(b"stillhouse tokens 2");
    part(&tokenizer.info().sha256);
    // How the text is read, but not where it lies.
    let settings = TextData {
        train_files: vec![],
        validation_files: vec![],
        tokenizer: None,
        chat_template: None,
        cache_dir: None,
        shard: None,
        fraction: None,
        ..data.clone()
    };
    part(&serde_json::to_vec(&settings).unwrap_or_default());
    // Which template it is follows from the folder of the tokenizer, or a file.
    if data.messages_field.is_some() {
        let folder = tokenizer.path().parent().unwrap_or(Path::new("."));
        let own = data.chat_template.clone();
        let beside = ["chat_template.jinja", "tokenizer_config.json"].map(|name| folder.join(name));
        for path in own.into_iter().chain(beside) {
            part(&std::fs::read(path).unwrap_or_default());
        }
    }
    classes.iter().flat_map(|classes| classes.names()).for_each(|name| part(name.as_bytes()));
    files.hash(&mut part);
    hash.finalize().into()
}

impl Corpus {
    pub(super) fn new() -> Self {
        let counts = Counts::default();
        Self { ids: vec![], learn: vec![], starts: vec![0], classes: vec![], counts }
    }

    /// Adds a document of a class.
    pub(super) fn push_classified(&mut self, ids: &[u32], class: u32) {
        self.push(ids, &vec![false; ids.len()]);
        self.classes.push(class);
        self.counts.learnt += 1;
    }

    /// Adds a document.
    pub(super) fn push(&mut self, ids: &[u32], learn: &[bool]) {
        self.ids.extend_from_slice(ids);
        self.learn.extend_from_slice(learn);
        self.starts.push(self.ids.len());
        self.counts.documents += 1;
        self.counts.tokens += ids.len() as u64;
        self.counts.learnt += learn.iter().skip(1).filter(|learn| **learn).count() as u64;
    }

    /// SHA-256 over tokens, marks, documents and classes.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((self.starts.len() as u64).to_le_bytes());
        for &start in &self.starts {
            hash.update((start as u64).to_le_bytes());
        }
        for (&id, &learn) in self.ids.iter().zip(&self.learn) {
            hash.update(id.to_le_bytes());
            hash.update([u8::from(learn)]);
        }
        self.classes.iter().for_each(|class| hash.update(class.to_le_bytes()));
        hash.finalize().into()
    }

    /// The range of each document among the tokens.
    pub(super) fn documents(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.starts.array_windows().map(|&[start, end]| start..end)
    }
}

/// The name of a format, for messages.
pub(super) fn format_name(format: TextFormat) -> &'static str {
    match format {
        TextFormat::Text => "text",
        TextFormat::Jsonl => "jsonl",
        TextFormat::Parquet => "parquet",
        TextFormat::Tsv => "tsv",
    }
}

#[cfg(test)]
mod tests;
