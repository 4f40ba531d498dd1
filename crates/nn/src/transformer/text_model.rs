//! A transformer that does not change any more: a teacher, or a student that is evaluated.

use std::path::Path;

use super::body::{Body, Tokens};
use super::config::{Task, TransformerConfig};
use super::load::read_weights;
use super::pass::Pass;
use super::tokenizer::TokenizerInfo;
use super::weights::Arranged;
use crate::error::ModelError;
use crate::io::Tensors;
use crate::kernel::packed::PackedLinear;
use crate::kernel::rope::Layout;
use crate::model::{Head, PackedHead, hash_model};

/// Token sequences, one after the other without padding.
#[derive(Clone, Copy, Debug)]
pub struct TokenBatch<'a> {
    /// Of all sequences.
    pub ids: &'a [u32],
    /// Tokens of each sequence.
    pub lengths: &'a [u32],
}

/// A trained transformer, read-only: a causal language model or a classifier of sequences.
///
/// A token's result is bit for bit the same whatever other sequences are in the batch, at whatever
/// place, on however many threads and with whatever vector registers.
#[derive(Clone, Debug)]
pub struct TextModel {
    config: TransformerConfig,
    body: Body<PackedLinear, Vec<f32>>,
    head: Head,
    packed: PackedHead,
    parameters: usize,
    fingerprint: [u8; 32],
    tokenizer: Option<TokenizerInfo>,
}

impl TextModel {
    /// Reads `config.json`, the weights (`model.safetensors`, or shards and their index) and, if it is
    /// there, what matters of `tokenizer.json`. Words of a language model that its tokenizer does not
    /// have are padding: they are no classes, and get no mass.
    ///
    /// # Errors
    ///
    /// A [`ModelError`] that names the file, the field or tensor, what was found and what was
    /// expected.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let config = TransformerConfig::load(dir)?;
        let tensors = read_weights(dir, &config)?;
        Self::from_tensors(config, &tensors, TokenizerInfo::load(dir)?)
    }

    /// Arranges weights, by the names that they have in files.
    pub(crate) fn from_tensors(
        config: TransformerConfig,
        tensors: &Tensors,
        tokenizer: Option<TokenizerInfo>,
    ) -> Result<Self, ModelError> {
        let spec = config.spec();
        let body = Body::new(&mut Arranged(tensors), spec)?;
        let (top, classes, d) = (spec.top_names(), spec.classes(), spec.hidden);
        let take = |name: &str, expected: &[usize]| match tensors.get(name) {
            Some((shape, values)) if shape == expected => Ok(values.clone()),
            _ => Err(ModelError::Layer { tensor: name.to_owned(), expected: expected.to_vec() }),
        };
        let weight = |name: &str| take(&format!("{name}.weight"), &[classes, d]);
        let (mut weight, bias, softcap) = match spec.task {
            Task::LanguageModel { tied: true, softcap } => {
                (take(top.tokens, &[classes, d])?, None, softcap)
            }
            Task::LanguageModel { tied: false, softcap } => (weight(top.head)?, None, softcap),
            Task::Classification { .. } => {
                (weight(top.head)?, Some(take(&format!("{}.bias", top.head), &[classes])?), None)
            }
        };
        let softcap = softcap.map(|cap| cap as f32);
        let classes = match (spec.task, &tokenizer) {
            (Task::LanguageModel { .. }, Some(tokenizer)) => tokenizer.size.min(classes),
            _ => classes,
        };
        weight.truncate(classes * d);
        let head = Head { weight, bias, classes, hidden_size: d, softcap };
        // Words that are cut off change every label.
        let mut described = serde_json::to_vec(spec).unwrap_or_default();
        if classes < spec.classes() {
            described.extend((classes as u64).to_le_bytes());
        }
        Ok(Self {
            packed: head.pack()?,
            head,
            body,
            parameters: tensors.values().map(|(_, values)| values.len()).sum(),
            fingerprint: hash_model(&described, tensors),
            tokenizer,
            config,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// SHA-256 over architecture, compute dtype, V where it is cut, and every tensor: equal fingerprints, equal labels.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Of `tokenizer.json`, where the directory had one.
    pub fn tokenizer(&self) -> Option<TokenizerInfo> {
        self.tokenizer
    }

    /// V: words of a language model that its tokenizer has (without a tokenizer, all), or classes.
    pub fn classes(&self) -> usize {
        self.head.classes
    }

    pub(super) fn body(&self) -> &Body<PackedLinear, Vec<f32>> {
        &self.body
    }

    /// The output projection.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The output projection, arranged for use.
    pub fn packed_head(&self) -> &PackedHead {
        &self.packed
    }

    /// Hidden states before the output projection, [labels, d]. Of a language model: of the positions
    /// `labelled` among the packed ids, ascending, or of all where none are given. Of a classifier:
    /// one for each sequence. A state that is not finite throughout is NaN throughout.
    ///
    /// # Errors
    ///
    /// [`ModelError::Size`] or [`ModelError::Token`] for a batch that does not fit the model.
    pub fn hidden(
        &self,
        batch: &TokenBatch<'_>,
        labelled: Option<&[usize]>,
    ) -> Result<Vec<f32>, ModelError> {
        let tokens = checked(&self.config, batch)?;
        let (x, _) = self.body.forward(&tokens, None, &Pass::INFERENCE)?;
        let d = self.config.hidden_size();
        let chosen = match (self.config.is_language_model(), labelled) {
            (false, _) => rows(&x, d, first_positions(&tokens.layout)),
            (true, None) => x,
            (true, Some(labelled)) => {
                check_positions(&self.config, labelled, batch.ids.len())?;
                rows(&x, d, labelled.iter().copied())
            }
        };
        let (mut hidden, _) = self.body.top(chosen, &Pass::INFERENCE)?;
        for state in hidden.chunks_exact_mut(d) {
            if state.iter().any(|h| !h.is_finite()) {
                state.fill(f32::NAN);
            }
        }
        Ok(hidden)
    }
}

/// First position of each sequence among the packed ids.
pub(super) fn first_positions(layout: &Layout) -> impl Iterator<Item = usize> {
    layout.lengths.iter().scan(0, |next, length| {
        let first = *next;
        *next += length;
        Some(first)
    })
}

/// Copies of chosen rows of `x` [rows, d].
pub(super) fn rows(x: &[f32], d: usize, chosen: impl Iterator<Item = usize>) -> Vec<f32> {
    chosen.flat_map(|row| &x[row * d..][..d]).copied().collect()
}

/// Checks that lengths and ids fit each other and the model.
pub(crate) fn checked<'a>(
    config: &TransformerConfig,
    batch: &TokenBatch<'a>,
) -> Result<Tokens<'a>, ModelError> {
    let most = config.max_length();
    let lengths: Vec<usize> = batch.lengths.iter().map(|&length| length as usize).collect();
    if let Some(&found) = lengths.iter().find(|&&length| !(1..=most).contains(&length)) {
        let expected = format!("1 to {most} tokens");
        return Err(ModelError::Size { field: "sequence", found, expected });
    }
    let tokens = lengths.iter().fold(0usize, |sum, &length| sum.saturating_add(length));
    if tokens != batch.ids.len() || tokens == 0 {
        let expected = format!("{tokens} ids, the sum of the lengths, and at least 1");
        return Err(ModelError::Size { field: "token ids", found: batch.ids.len(), expected });
    }
    let vocabulary = config.vocabulary();
    if let Some(position) = batch.ids.iter().position(|&id| id as usize >= vocabulary) {
        return Err(ModelError::Token { position, id: batch.ids[position], vocabulary });
    }
    Ok(Tokens { ids: batch.ids, layout: Layout::whole(lengths) })
}

/// Checks that a language model's labelled positions are some of `tokens`, ascending.
pub(crate) fn check_positions(
    config: &TransformerConfig,
    labelled: &[usize],
    tokens: usize,
) -> Result<(), ModelError> {
    if !config.is_language_model() {
        return Ok(());
    }
    let ascending = labelled.is_sorted_by(|a, b| a < b);
    match labelled.last() {
        Some(&last) if ascending && last < tokens => Ok(()),
        _ => {
            let expected = format!("at least 1 position, ascending, below {tokens}");
            Err(ModelError::Size { field: "labelled", found: labelled.len(), expected })
        }
    }
}
