//! Transformers: decoders as language models, encoders as classifiers of sequences.
//!
//! One implementation serves and trains. A model is a Hugging Face directory: `config.json`,
//! `model.safetensors` (or shards and their index) and `tokenizer.json`, with transformers' tensor
//! names. Sequences are packed, not padded: linear layers see [tokens, d], attention runs within each
//! sequence.
//!
//! | `model_type` | family |
//! |---|---|
//! | `llama` | Llama 2 and 3: grouped queries, rotary positions (plain, `linear`, `llama3`, `yarn`) |
//! | `mistral` | the same with a sliding window |
//! | `qwen2`, `qwen3` | with biases of queries, keys and values; with norms of queries and keys |
//! | `gemma2`, `gemma3_text` | norms around sublayers, capped logits; two kinds of layers |
//! | `bert`, `roberta`, `distilbert` | encoders, for sequence classification |

mod attention;
mod body;
mod config;
mod generate;
mod load;
mod mlp;
mod names;
mod network;
mod pass;
mod sublayer;
mod text_model;
mod tokenizer;
mod weights;

pub use config::TransformerConfig;
pub use generate::Sampling;
pub(crate) use load::read_weights;
pub(crate) use network::TextNetwork;
pub(crate) use pass::{Keep, Masks, Pass};
pub use text_model::{TextModel, TokenBatch};
pub(crate) use text_model::{check_positions, checked};
pub use tokenizer::{TOKENIZER_FILE, TokenizerInfo};
