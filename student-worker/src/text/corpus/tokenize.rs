//! Documents to token ids.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use stillhouse_nn::{TokenizerInfo, transformer::TOKENIZER_FILE};
use tokenizers::{PostProcessor as _, Tokenizer, TruncationDirection};

use super::{
    Corpus,
    error::TextError,
    source::{Document, Documents},
};
use crate::text::recipe::{OnFault, OnLong, TextData};

/// A tokenizer, and the tokens that stand at the ends of documents.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
    info: TokenizerInfo,
    begin: Option<u32>,
    end: Option<u32>,
    /// Of conversations: what the template ends a turn with.
    turn_end: Option<u32>,
    /// Of texts that are classified: the side that long ones are cut at.
    direction: TruncationDirection,
}

impl TextTokenizer {
    /// Reads the `tokenizer.json` that a recipe names, or the one of a folder.
    ///
    /// # Errors
    /// If it cannot be read, or lacks a token that the recipe names.
    pub fn load(data: &TextData, path: &Path) -> Result<Self, TextError> {
        let path = match path.is_dir() {
            true => path.join(TOKENIZER_FILE),
            false => path.to_owned(),
        };
        let fault = |reason: String| TextError::Tokenizer { path: path.clone(), reason };
        let bytes =
            std::fs::read(&path).map_err(|source| TextError::Io { path: path.clone(), source })?;
        let info = TokenizerInfo::parse(&path, &bytes).map_err(|error| fault(error.to_string()))?;
        let mut tokenizer =
            Tokenizer::from_bytes(&bytes).map_err(|error| fault(error.to_string()))?;
        // What a file says about a model's batches is not about documents.
        tokenizer.with_padding(None);
        let direction = tokenizer.get_truncation().map_or_else(Default::default, |t| t.direction);
        tokenizer.with_truncation(None).map_err(|error| fault(error.to_string()))?;
        let token = |key, name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => tokenizer.token_to_id(name).map(Some).ok_or(TextError::Token {
                key,
                value: name.clone(),
                tokenizer: path.clone(),
            }),
        };
        let (begin, end) = (token("data.begin", &data.begin)?, token("data.end", &data.end)?);
        if data.classifies() {
            // Not all that such a file may say of its special tokens is checked when it is read.
            let added = catch_unwind(AssertUnwindSafe(|| {
                let text = tokenizer.encode("a", false).ok()?;
                tokenizer.post_process(text, None, true).ok()
            }));
            if !matches!(added, Ok(Some(_))) {
                let reason = "its post_processor cannot put special tokens around a text";
                return Err(fault(reason.to_owned()));
            }
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let turn_end = match data.messages_field.is_some() {
            true => super::chat::eos_token(folder)?.and_then(|name| tokenizer.token_to_id(&name)),
            false => None,
        };
        Ok(Self { tokenizer, info, begin, end, turn_end, direction, path: path.clone() })
    }

    /// Which tokenizer it is.
    pub fn info(&self) -> TokenizerInfo {
        self.info
    }

    /// The token that ends what a model writes: the one behind a document, or, of conversations, the
    /// tokenizer's `eos_token`, where the recipe names none.
    pub fn stop(&self) -> Option<u32> {
        self.end.or(self.turn_end)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Special tokens that it puts around a text.
    pub fn added_tokens(&self) -> usize {
        let processor = self.tokenizer.get_post_processor();
        processor.map_or(0, |processor| processor.added_tokens(false))
    }

    /// The text of tokens, for people.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, false).unwrap_or_default()
    }

    /// Tokenises documents. No special token but those of the recipe is added; of documents that are
    /// classified, those that the tokenizer puts around a text.
    pub(super) fn corpus(&self, data: &TextData, from: &Documents) -> Result<Corpus, TextError> {
        let mut corpus = Corpus::new();
        corpus.counts.malformed = from.malformed;
        corpus.counts.invalid_utf8 = from.invalid_utf8;
        for document in &from.documents {
            if let Some(class) = document.class {
                self.classified(&mut corpus, data, document, class)?;
                continue;
            }
            let (ids, learn) = self.encode(document)?;
            if !learn.iter().skip(1).any(|learn| *learn) {
                match data.on_empty {
                    OnFault::Skip => corpus.counts.empty += 1,
                    OnFault::Error => {
                        let reason = "no token to learn".to_owned();
                        return Err(document.refused(reason, "data.on_empty"));
                    }
                }
                continue;
            }
            // The last token of a sequence is only ever predicted.
            let most = data.sequence_length + 1;
            let long = ids.len() > most;
            corpus.counts.long += u64::from(long);
            match data.on_long() {
                OnLong::Error if long => {
                    let reason = format!(
                        "{} tokens, more than the {} of a sequence",
                        ids.len(),
                        data.sequence_length
                    );
                    return Err(document.refused(reason, "data.on_long"));
                }
                OnLong::Skip if long => {}
                OnLong::Truncate if long && !learn[1..most].iter().any(|learn| *learn) => {
                    // Nothing to learn is left of it.
                    corpus.counts.empty += 1;
                }
                OnLong::Truncate if long => corpus.push(&ids[..most], &learn[..most]),
                _ => corpus.push(&ids, &learn),
            }
        }
        Ok(corpus)
    }

    /// Adds a document of a class, as transformers' tokenizers encode one.
    fn classified(
        &self,
        corpus: &mut Corpus,
        data: &TextData,
        document: &Document,
        class: u32,
    ) -> Result<(), TextError> {
        let fault = |error: tokenizers::Error| document.not_encoded(&error);
        let text: String = document.parts.iter().map(|part| part.text.as_str()).collect();
        let mut encoded = self.tokenizer.encode(text, false).map_err(fault)?;
        if encoded.is_empty() {
            corpus.counts.empty += 1;
            return match data.on_empty {
                OnFault::Skip => Ok(()),
                OnFault::Error => Err(document.refused("no token".to_owned(), "data.on_empty")),
            };
        }
        let special = self.added_tokens();
        let (found, most) = (encoded.len() + special, data.sequence_length);
        let long = found > most;
        corpus.counts.long += u64::from(long);
        match data.on_long() {
            OnLong::Skip if long => return Ok(()),
            OnLong::Error if long => {
                let reason = format!("{found} tokens, more than the {most} of a sequence");
                return Err(document.refused(reason, "data.on_long"));
            }
            OnLong::Truncate if long => {
                let room = most.saturating_sub(special);
                encoded.truncate(room, 0, self.direction);
            }
            _ => {}
        }
        let encoded = self.tokenizer.post_process(encoded, None, true).map_err(fault)?;
        corpus.push_classified(encoded.get_ids(), class);
        Ok(())
    }

    fn encode(&self, document: &Document) -> Result<(Vec<u32>, Vec<bool>), TextError> {
        let mut ids: Vec<u32> = self.begin.into_iter().collect();
        let mut learn = vec![false; ids.len()];
        let encode = |text: &str| {
            self.tokenizer.encode(text, false).map_err(|error| document.not_encoded(&error))
        };
        if document.joined {
            let text: String = document.parts.iter().map(|part| part.text.as_str()).collect();
            let encoded = encode(&text)?;
            ids.extend_from_slice(encoded.get_ids());
            // A token of two parts is learnt if one of them is, as transformers' assistant mask has it.
            let ends: Vec<usize> = document
                .parts
                .iter()
                .scan(0, |end, part| {
                    *end += part.text.len();
                    Some(*end)
                })
                .collect();
            let part_of = |at: usize| ends.partition_point(|end| *end <= at);
            learn.extend(encoded.get_offsets().iter().map(|&(start, end)| {
                let last = part_of(end.max(start + 1) - 1);
                let parts = document.parts.get(part_of(start)..=last);
                parts.is_some_and(|parts| parts.iter().any(|part| part.learn))
            }));
        } else {
            for part in &document.parts {
                ids.extend_from_slice(encode(&part.text)?.get_ids());
                learn.resize(ids.len(), part.learn);
            }
        }
        let empty = document.parts.iter().all(|part| part.text.is_empty());
        if let Some(end) = self.end.filter(|_| !empty) {
            ids.push(end);
            // Of a conversation that the user has the last word of, there is no end to learn.
            learn.push(!document.joined || learn.last() == Some(&true));
        }
        Ok((ids, learn))
    }
}

impl Document {
    /// An error that a key of the recipe could pass over.
    fn refused(&self, reason: String, key: &'static str) -> TextError {
        TextError::Document { file: self.file.clone(), line: self.line, reason, key }
    }

    fn not_encoded(&self, error: &tokenizers::Error) -> TextError {
        let (file, line) = (self.file.clone(), self.line);
        TextError::Encode { file, line, reason: error.to_string() }
    }
}
