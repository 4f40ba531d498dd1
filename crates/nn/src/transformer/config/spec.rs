//! What a transformer is, whatever its family calls the parts.

use serde::Serialize;

use crate::transformer::pass::DropoutRates;

/// A validated architecture. Everything that decides a model's numbers is here, and nothing else: its
/// JSON is what the fingerprint covers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Spec {
    pub(crate) family: Family,
    pub(crate) task: Task,
    /// Rows of the embedding.
    pub(crate) vocab: usize,
    /// Width d of the residual stream.
    pub(crate) hidden: usize,
    /// Width of a feed-forward layer.
    pub(crate) intermediate: usize,
    pub(crate) heads: usize,
    /// Heads of keys and values, a divisor of `heads`.
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// One for each block, first to last.
    pub(crate) layers: Vec<LayerSpec>,
    /// Tokens that a sequence may have.
    pub(crate) max_positions: usize,
    pub(crate) norm: NormKind,
    pub(crate) norm_eps: f64,
    pub(crate) placement: Placement,
    pub(crate) activation: Activation,
    /// `down(act(gate) * up)` instead of `down(act(up))`.
    pub(crate) gated: bool,
    pub(crate) qkv_bias: bool,
    pub(crate) output_bias: bool,
    pub(crate) mlp_bias: bool,
    /// Queries and keys of every head are normalised before the rotation.
    pub(crate) qk_norm: bool,
    /// What scores are multiplied by.
    pub(crate) attention_scale: f64,
    /// Scores s become `cap * tanh(s / cap)`.
    pub(crate) attention_softcap: Option<f64>,
    /// A position sees only itself and those before it.
    pub(crate) causal: bool,
    /// Rotations that layers choose from; none where positions are embedded.
    pub(crate) ropes: Vec<Rope>,
    /// Learned embeddings of positions and segments.
    pub(crate) learned: Option<Learned>,
    /// What embeddings are multiplied by.
    pub(crate) embedding_scale: f64,
    pub(crate) initializer_range: f64,
    /// Token whose embedding does not learn as an input, as in PyTorch's `Embedding` with a
    /// `padding_idx`. It decides no label.
    #[serde(skip)]
    pub(crate) padding: Option<usize>,
    /// What training drops. It decides no label.
    #[serde(skip)]
    pub(crate) dropout: DropoutRates,
}

/// Where tensor names come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Family {
    /// Llama and all decoders that took over its names.
    Llama,
    /// The same, with norms after the sublayers too.
    Gemma,
    Bert,
    Roberta,
    DistilBert,
}

/// What is said of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) enum Task {
    /// Logits over the vocabulary at every position.
    LanguageModel {
        /// The embedding is the output projection too.
        tied: bool,
        /// Logits z become `cap * tanh(z / cap)`.
        softcap: Option<f64>,
    },
    /// Logits over classes, from the first position of a sequence.
    Classification {
        labels: usize,
        /// Of the layer before the output projection.
        activation: Activation,
    },
}

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LayerSpec {
    /// Positions that a query sees, itself included; none: all.
    pub(crate) window: Option<usize>,
    /// Which of [`Spec::ropes`].
    pub(crate) rope: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) enum NormKind {
    /// `x / rms(x) * (weight + offset)` (Zhang and Sennrich, 2019).
    Rms { offset: f32 },
    /// `(x - mean) / std * weight + bias` (Ba et al., 2016).
    Layer,
}

/// Where a sublayer f is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Placement {
    /// `x + f(norm(x))`.
    Before,
    /// `x + norm(f(norm(x)))`.
    BeforeAndAfter,
    /// `norm(x + f(x))`.
    Outside,
}

/// Nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Activation {
    /// max(0, x).
    Relu,
    /// x / (1 + exp(-x)).
    Silu,
    /// x times the normal distribution function (Hendrycks and Gimpel, 2016).
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
    /// Hyperbolic tangent.
    Tanh,
}

/// Rotary position embedding (Su et al., 2021): the pair (x_i, x_{i + head_dim / 2}) turns by
/// `position * inverse_frequencies[i]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Rope {
    /// head_dim / 2 of them.
    pub(crate) inverse_frequencies: Vec<f32>,
    /// What the rotated vectors are multiplied by.
    pub(crate) scale: f32,
}

/// Embeddings beside those of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Learned {
    /// Rows of the table of positions.
    pub(crate) positions: usize,
    /// Row of the first position.
    pub(crate) first: usize,
    /// Token that takes no position: it has this very row of the table, and those behind it do not
    /// count it.
    pub(crate) padding: Option<usize>,
    /// Rows of the table of segments, all tokens being of segment 0; 0: there is none.
    pub(crate) segments: usize,
}

impl Spec {
    /// Width of all queries of one token.
    pub(crate) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all keys, or values, of one token.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Rows of the output projection.
    pub(crate) fn classes(&self) -> usize {
        match self.task {
            Task::LanguageModel { .. } => self.vocab,
            Task::Classification { labels, .. } => labels,
        }
    }
}
