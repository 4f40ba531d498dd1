//! What Hugging Face calls the parts of each family.

use std::collections::BTreeMap;

use super::config::{Family, NormKind, Placement, Spec, Task};

/// Names of one block's layers: each has a `.weight` and, where the design says so, a `.bias`.
#[derive(Debug)]
pub(crate) struct BlockNames {
    pub(crate) q: String,
    pub(crate) k: String,
    pub(crate) v: String,
    pub(crate) output: String,
    pub(crate) q_norm: String,
    pub(crate) k_norm: String,
    pub(crate) gate: String,
    pub(crate) up: String,
    pub(crate) down: String,
    pub(crate) attention_norms: SublayerNorms<String>,
    pub(crate) mlp_norms: SublayerNorms<String>,
}

/// The norms that a sublayer has.
#[derive(Clone, Debug, Default)]
pub(crate) struct SublayerNorms<N> {
    /// Of its input.
    pub(crate) before: Option<N>,
    /// Of its output.
    pub(crate) after: Option<N>,
    /// Of the sum.
    pub(crate) outside: Option<N>,
}

impl<N> SublayerNorms<N> {
    pub(crate) fn map<M, E>(
        self,
        mut f: impl FnMut(N) -> Result<M, E>,
    ) -> Result<SublayerNorms<M>, E> {
        Ok(SublayerNorms {
            before: self.before.map(&mut f).transpose()?,
            after: self.after.map(&mut f).transpose()?,
            outside: self.outside.map(&mut f).transpose()?,
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &N> {
        self.before.iter().chain(&self.after).chain(&self.outside)
    }
}

/// Names of what is there once.
#[derive(Debug)]
pub(crate) struct TopNames {
    pub(crate) tokens: &'static str,
    pub(crate) positions: &'static str,
    pub(crate) segments: &'static str,
    /// After the embeddings; none where they are used as they are.
    pub(crate) embedding_norm: Option<&'static str>,
    /// After the last block.
    pub(crate) final_norm: Option<&'static str>,
    /// Between a sequence's first position and the output projection.
    pub(crate) dense: &'static str,
    /// The output projection.
    pub(crate) head: &'static str,
}

impl Spec {
    pub(crate) fn top_names(&self) -> TopNames {
        let base = TopNames {
            tokens: "model.embed_tokens.weight",
            positions: "",
            segments: "",
            embedding_norm: None,
            final_norm: Some("model.norm"),
            dense: "",
            head: "lm_head",
        };
        match self.family {
            Family::Llama | Family::Gemma => base,
            Family::Bert => TopNames {
                tokens: "bert.embeddings.word_embeddings.weight",
                positions: "bert.embeddings.position_embeddings.weight",
                segments: "bert.embeddings.token_type_embeddings.weight",
                embedding_norm: Some("bert.embeddings.LayerNorm"),
                final_norm: None,
                dense: "bert.pooler.dense",
                head: "classifier",
            },
            Family::Roberta => TopNames {
                tokens: "roberta.embeddings.word_embeddings.weight",
                positions: "roberta.embeddings.position_embeddings.weight",
                segments: "roberta.embeddings.token_type_embeddings.weight",
                embedding_norm: Some("roberta.embeddings.LayerNorm"),
                final_norm: None,
                dense: "classifier.dense",
                head: "classifier.out_proj",
            },
            Family::DistilBert => TopNames {
                tokens: "distilbert.embeddings.word_embeddings.weight",
                positions: "distilbert.embeddings.position_embeddings.weight",
                segments: "",
                embedding_norm: Some("distilbert.embeddings.LayerNorm"),
                final_norm: None,
                dense: "pre_classifier",
                head: "classifier",
            },
        }
    }

    pub(crate) fn block_names(&self, layer: usize) -> BlockNames {
        match self.family {
            Family::Llama | Family::Gemma => self.decoder_block(layer),
            Family::Bert => bert_block("bert", layer),
            Family::Roberta => bert_block("roberta", layer),
            Family::DistilBert => distilbert_block(layer),
        }
    }

    fn decoder_block(&self, layer: usize) -> BlockNames {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let only = |name: &str| SublayerNorms { before: Some(at(name)), ..Default::default() };
        let (attention_norms, mlp_norms) = match self.placement {
            Placement::BeforeAndAfter => (
                SublayerNorms {
                    before: Some(at("input_layernorm")),
                    after: Some(at("post_attention_layernorm")),
                    outside: None,
                },
                SublayerNorms {
                    before: Some(at("pre_feedforward_layernorm")),
                    after: Some(at("post_feedforward_layernorm")),
                    outside: None,
                },
            ),
            _ => (only("input_layernorm"), only("post_attention_layernorm")),
        };
        BlockNames {
            q: at("self_attn.q_proj"),
            k: at("self_attn.k_proj"),
            v: at("self_attn.v_proj"),
            output: at("self_attn.o_proj"),
            q_norm: at("self_attn.q_norm"),
            k_norm: at("self_attn.k_norm"),
            gate: at("mlp.gate_proj"),
            up: at("mlp.up_proj"),
            down: at("mlp.down_proj"),
            attention_norms,
            mlp_norms,
        }
    }

    /// Name and shape of every tensor of the model's file. A tied output projection is not in it.
    pub(crate) fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut all = BTreeMap::new();
        let top = self.top_names();
        let (d, f) = (self.hidden, self.intermediate);
        all.insert(top.tokens.to_owned(), vec![self.vocab, d]);
        if let Some(learned) = &self.learned {
            all.insert(top.positions.to_owned(), vec![learned.positions, d]);
            if learned.segments > 0 {
                all.insert(top.segments.to_owned(), vec![learned.segments, d]);
            }
        }
        let mut norm = |name: &str, width: usize| {
            all.insert(format!("{name}.weight"), vec![width]);
            if self.norm == NormKind::Layer {
                all.insert(format!("{name}.bias"), vec![width]);
            }
        };
        top.embedding_norm.into_iter().chain(top.final_norm).for_each(|name| norm(name, d));
        let mut linears = vec![];
        for layer in 0..self.layers.len() {
            let names = self.block_names(layer);
            names.attention_norms.iter().chain(names.mlp_norms.iter()).for_each(|n| norm(n, d));
            if self.qk_norm {
                norm(&names.q_norm, self.head_dim);
                norm(&names.k_norm, self.head_dim);
            }
            linears.extend([
                (names.q, [self.q_width(), d], self.qkv_bias),
                (names.k, [self.kv_width(), d], self.qkv_bias),
                (names.v, [self.kv_width(), d], self.qkv_bias),
                (names.output, [d, self.q_width()], self.output_bias),
                (names.up, [f, d], self.mlp_bias),
                (names.down, [d, f], self.mlp_bias),
            ]);
            if self.gated {
                linears.push((names.gate, [f, d], self.mlp_bias));
            }
        }
        match self.task {
            Task::LanguageModel { tied: true, .. } => {}
            Task::LanguageModel { tied: false, .. } => {
                linears.push((top.head.to_owned(), [self.vocab, d], false));
            }
            Task::Classification { labels, .. } => {
                linears.push((top.dense.to_owned(), [d, d], true));
                linears.push((top.head.to_owned(), [labels, d], true));
            }
        }
        for (name, [outputs, inputs], bias) in linears {
            all.insert(format!("{name}.weight"), vec![outputs, inputs]);
            if bias {
                all.insert(format!("{name}.bias"), vec![outputs]);
            }
        }
        all
    }

    /// Tensors that files of this family may hold beside [`Self::tensors`], to be passed over: a tied
    /// projection that was written all the same, and tables that follow from the configuration.
    pub(crate) fn is_redundant(&self, name: &str) -> bool {
        let tied = matches!(self.task, Task::LanguageModel { tied: true, .. });
        (tied && name == "lm_head.weight")
            || name.ends_with(".rotary_emb.inv_freq")
            || name.ends_with(".embeddings.position_ids")
            || name.ends_with(".embeddings.token_type_ids")
    }
}

fn bert_block(model: &str, layer: usize) -> BlockNames {
    let at = |name: &str| format!("{model}.encoder.layer.{layer}.{name}");
    let outside = |name: &str| SublayerNorms { outside: Some(at(name)), ..Default::default() };
    BlockNames {
        q: at("attention.self.query"),
        k: at("attention.self.key"),
        v: at("attention.self.value"),
        output: at("attention.output.dense"),
        q_norm: String::new(),
        k_norm: String::new(),
        gate: String::new(),
        up: at("intermediate.dense"),
        down: at("output.dense"),
        attention_norms: outside("attention.output.LayerNorm"),
        mlp_norms: outside("output.LayerNorm"),
    }
}

fn distilbert_block(layer: usize) -> BlockNames {
    let at = |name: &str| format!("distilbert.transformer.layer.{layer}.{name}");
    let outside = |name: &str| SublayerNorms { outside: Some(at(name)), ..Default::default() };
    BlockNames {
        q: at("attention.q_lin"),
        k: at("attention.k_lin"),
        v: at("attention.v_lin"),
        output: at("attention.out_lin"),
        q_norm: String::new(),
        k_norm: String::new(),
        gate: String::new(),
        up: at("ffn.lin1"),
        down: at("ffn.lin2"),
        attention_norms: outside("sa_layer_norm"),
        mlp_norms: outside("output_layer_norm"),
    }
}
