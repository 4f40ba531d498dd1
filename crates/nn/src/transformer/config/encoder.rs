//! The encoder families, as classifiers of sequences.

use super::reader::Reader;
use super::spec::{Activation, Family, LayerSpec, Learned, NormKind, Placement, Spec, Task};
use crate::error::ModelError;
use crate::transformer::pass::DropoutRates;

/// Names of a family's keys.
struct Keys {
    hidden: &'static str,
    intermediate: &'static str,
    layers: &'static str,
    heads: &'static str,
    activation: &'static str,
}

const BERT: Keys = Keys {
    hidden: "hidden_size",
    intermediate: "intermediate_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    activation: "hidden_act",
};

/// The keys that all encoders share, as a BERT-base has them.
fn common(
    reader: &Reader<'_>,
    keys: &Keys,
    family: Family,
    [vocab, layers, padding]: [usize; 3],
) -> Result<Spec, ModelError> {
    if let Some(names) = reader.texts("architectures")?
        && !names.iter().all(|name| name.ends_with("ForSequenceClassification"))
    {
        return Err(reader.fault("architectures", "a model ..ForSequenceClassification"));
    }
    for (key, expected) in [("is_decoder", "false"), ("add_cross_attention", "false")] {
        if reader.flag(key, false)? {
            return Err(reader.fault(key, expected));
        }
    }
    if reader.text("problem_type")?.is_some_and(|kind| kind != "single_label_classification") {
        return Err(reader.fault("problem_type", "single_label_classification"));
    }
    if reader.text("position_embedding_type")?.is_some_and(|kind| kind != "absolute") {
        return Err(reader.fault("position_embedding_type", "absolute"));
    }
    let (hidden, heads) = (reader.size(keys.hidden, 768)?, reader.size(keys.heads, 12)?);
    if !hidden.is_multiple_of(heads) {
        return Err(reader.fault(keys.hidden, &format!("a multiple of {}", keys.heads)));
    }
    let layers = reader.optional_size(keys.layers)?.unwrap_or(layers);
    if layers > super::MAX_LAYERS {
        return Err(reader.fault(keys.layers, &format!("0 to {}", super::MAX_LAYERS)));
    }
    let vocab = reader.size("vocab_size", vocab)?;
    let head_dim = hidden / heads;
    let positions = reader.size("max_position_embeddings", 512)?;
    Ok(Spec {
        family,
        task: Task::Classification { labels: reader.labels()?, activation: Activation::Tanh },
        vocab,
        hidden,
        intermediate: reader.size(keys.intermediate, 3072)?,
        heads,
        kv_heads: heads,
        head_dim,
        layers: vec![LayerSpec { window: None, rope: 0 }; layers],
        max_positions: positions,
        norm: NormKind::Layer,
        norm_eps: reader.positive("layer_norm_eps")?.unwrap_or(1e-12),
        placement: Placement::Outside,
        activation: reader.activation(keys.activation, Activation::Gelu)?,
        gated: false,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        qk_norm: false,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        causal: false,
        ropes: vec![],
        learned: Some(Learned {
            positions,
            first: 0,
            padding: None,
            segments: reader.optional_size("type_vocab_size")?.unwrap_or(2),
        }),
        embedding_scale: 1.0,
        initializer_range: reader.positive("initializer_range")?.unwrap_or(0.02),
        padding: reader.padding(Some(padding), vocab),
        dropout: DropoutRates::default(),
    })
}

pub(super) fn bert(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    let mut spec = common(reader, &BERT, Family::Bert, [30_522, 12, 0])?;
    spec.dropout = bert_dropout(reader)?;
    Ok(spec)
}

fn bert_dropout(reader: &Reader<'_>) -> Result<DropoutRates, ModelError> {
    let hidden = reader.dropout("hidden_dropout_prob", 0.1)?;
    Ok(DropoutRates {
        embedding: hidden,
        weights: reader.dropout("attention_probs_dropout_prob", 0.1)?,
        attention: hidden,
        feed_forward: hidden,
        head_input: 0.0,
        head: reader.dropout("classifier_dropout", hidden)?,
    })
}

/// Positions count from behind the padding token's id, and pass over padding.
pub(super) fn roberta(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    let mut spec = common(reader, &BERT, Family::Roberta, [50_265, 12, 1])?;
    let padding = reader.optional_size("pad_token_id")?.unwrap_or(1);
    if padding >= spec.max_positions.saturating_sub(1) {
        return Err(reader.fault("pad_token_id", "below max_position_embeddings less 1"));
    }
    spec.max_positions -= padding + 1;
    let dropout = bert_dropout(reader)?;
    spec.dropout = DropoutRates { head_input: dropout.head, ..dropout };
    if let Some(learned) = &mut spec.learned {
        learned.first = padding + 1;
        learned.padding = Some(padding);
    }
    Ok(spec)
}

pub(super) fn distilbert(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    const KEYS: Keys = Keys {
        hidden: "dim",
        intermediate: "hidden_dim",
        layers: "n_layers",
        heads: "n_heads",
        activation: "activation",
    };
    let mut spec = common(reader, &KEYS, Family::DistilBert, [30_522, 6, 0])?;
    spec.norm_eps = 1e-12;
    let hidden = reader.dropout("dropout", 0.1)?;
    spec.dropout = DropoutRates {
        embedding: hidden,
        weights: reader.dropout("attention_dropout", 0.1)?,
        attention: 0.0,
        feed_forward: hidden,
        head_input: 0.0,
        head: reader.dropout("seq_classif_dropout", 0.2)?,
    };
    if let Some(learned) = &mut spec.learned {
        learned.segments = 0;
    }
    if let Task::Classification { activation, .. } = &mut spec.task {
        *activation = Activation::Relu;
    }
    Ok(spec)
}
