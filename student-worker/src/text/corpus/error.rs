//! Why text cannot be used.

use std::{io, path::PathBuf};

/// Why text cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file cannot be read.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tokenizer cannot be used.
    #[error("{}: not a tokenizer: {reason}", path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A table cannot be used.
    #[error("{}: {reason}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A chat template cannot be used.
    #[error("{}: {reason}", path.display())]
    Template {
        /// The file with it.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A special token that the tokenizer does not have.
    #[error("{key} is {value:?}; expected a token of {}", tokenizer.display())]
    Token {
        /// The recipe's key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// The tokenizer's file.
        tokenizer: PathBuf,
    },
    /// A document that the recipe does not pass over.
    #[error("{}: line {line}: {reason}; {key} = \"skip\" would pass it over", file.display())]
    Document {
        /// The file.
        file: PathBuf,
        /// Where the document begins, counted from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
        /// The key that decides what happens.
        key: &'static str,
    },
    /// Nothing is left to train or to validate on.
    #[error("{what}: no document to learn from; {found}")]
    Nothing {
        /// Which part of the data.
        what: &'static str,
        /// What was found instead.
        found: String,
    },
    /// The tokenizer failed on a document.
    #[error("{}: line {line}: cannot be tokenised: {reason}", file.display())]
    Encode {
        /// The file.
        file: PathBuf,
        /// Where the document begins, counted from 1.
        line: u64,
        /// Why.
        reason: String,
    },
}
