//! How a forward pass computes, and what it keeps.

use crate::kernel::dropout::Mask;
use crate::kernel::precision::{Precision, Stored};

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: inference.
    Nothing,
    /// The input of every block, from which the rest is computed again (Chen et al., 2016, "Training
    /// Deep Nets with Sublinear Memory Cost").
    Inputs,
    All,
}

/// One pass through a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    pub(crate) keep: Keep,
    /// Of a model in training; a frozen one computes in f32.
    pub(crate) precision: Precision,
    pub(crate) dropout: Option<Masks>,
}

impl Pass {
    /// Without dropout, in f32, keeping nothing.
    pub(crate) const INFERENCE: Self =
        Self { keep: Keep::Nothing, precision: Precision::F32, dropout: None };
}

/// A place where training drops values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// Embeddings, behind their norm.
    Embedding,
    /// Weights of the attention of a block.
    Weights(usize),
    /// Output of a block's attention.
    Attention(usize),
    /// Output of a block's feed-forward layer.
    FeedForward(usize),
    /// Of a classifier: what the dense layer sees.
    HeadInput,
    /// Of a classifier: what the output projection sees.
    Head,
}

/// How much is dropped at each, at least 0 and below 1: see [`Site`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct DropoutRates {
    pub(crate) embedding: f32,
    pub(crate) weights: f32,
    pub(crate) attention: f32,
    pub(crate) feed_forward: f32,
    pub(crate) head_input: f32,
    pub(crate) head: f32,
}

impl DropoutRates {
    /// Whether anything is dropped.
    pub(crate) fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// What one pass of training drops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masks {
    /// A pass's own.
    pub(crate) seed: u64,
    pub(crate) rates: DropoutRates,
}

impl Masks {
    /// What is dropped at a place; none: nothing.
    pub(crate) fn at(&self, site: Site) -> Option<Mask> {
        let rates = &self.rates;
        let (stream, rate) = match site {
            Site::Embedding => (0, rates.embedding),
            Site::HeadInput => (1, rates.head_input),
            Site::Head => (2, rates.head),
            Site::Weights(block) => (3 + 3 * block, rates.weights),
            Site::Attention(block) => (4 + 3 * block, rates.attention),
            Site::FeedForward(block) => (5 + 3 * block, rates.feed_forward),
        };
        (rate > 0.0).then_some(Mask { seed: self.seed, stream: stream as u64, rate })
    }
}

impl Pass {
    /// Stores values for the backward pass, which [`Precision::round`] has been over.
    pub(crate) fn store(&self, values: Vec<f32>) -> Stored {
        match self.keep {
            Keep::All => self.precision.store(values),
            // They are dropped, or read at once.
            Keep::Nothing | Keep::Inputs => Stored::F32(values),
        }
    }

    pub(crate) fn mask(&self, site: Site) -> Option<Mask> {
        self.dropout.and_then(|masks| masks.at(site))
    }

    /// Drops values, or gradients of them.
    pub(crate) fn drop_at(&self, site: Site, values: &mut [f32]) {
        if let Some(mask) = self.mask(site) {
            mask.apply(values);
        }
    }
}
