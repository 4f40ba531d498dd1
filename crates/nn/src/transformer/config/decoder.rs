//! The decoder families.

use super::reader::Reader;
use super::spec::{Activation, Family, LayerSpec, NormKind, Placement, Rope, Spec, Task};
use super::{check, rope};
use crate::error::ModelError;
use crate::transformer::pass::DropoutRates;

/// What transformers assumes of a family's keys that are absent.
struct Defaults {
    vocab: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    max_positions: usize,
    tied: bool,
    padding: Option<usize>,
}

/// The keys that all decoders share, as a Llama has them.
fn common(reader: &Reader<'_>, defaults: &Defaults) -> Result<Spec, ModelError> {
    if let Some(names) = reader.texts("architectures")?
        && !names.iter().all(|name| name.ends_with("ForCausalLM"))
    {
        return Err(reader.fault("architectures", "a model ..ForCausalLM"));
    }
    let heads = reader.size("num_attention_heads", defaults.heads)?;
    let hidden = reader.size("hidden_size", defaults.hidden)?;
    // A null says as many as queries; absent is the family's default.
    let kv_default = match defaults.kv_heads {
        Some(count) if !reader.is_null("num_key_value_heads") => count,
        _ => heads,
    };
    let head_default = match defaults.head_dim {
        Some(width) if !reader.is_null("head_dim") => width,
        _ => {
            if !reader.has("head_dim") && !hidden.is_multiple_of(heads) {
                return Err(reader.fault("hidden_size", "a multiple of num_attention_heads"));
            }
            hidden / heads
        }
    };
    let head_dim = reader.size("head_dim", head_default)?;
    // Rotations are made of these before the whole is checked.
    check::size("hidden_size", hidden, 1)?;
    check::within("num_attention_heads", heads, 1..=super::MAX_HEADS)?;
    check::within("head_dim", head_dim, 1..=super::MAX_HEAD_DIM)?;
    let vocab = reader.size("vocab_size", defaults.vocab)?;
    let layers = reader.optional_size("num_hidden_layers")?.unwrap_or(defaults.layers);
    if layers > super::MAX_LAYERS {
        return Err(reader.fault("num_hidden_layers", &format!("0 to {}", super::MAX_LAYERS)));
    }
    Ok(Spec {
        family: Family::Llama,
        task: Task::LanguageModel {
            tied: reader.flag("tie_word_embeddings", defaults.tied)?,
            softcap: None,
        },
        vocab,
        hidden,
        intermediate: reader.size("intermediate_size", defaults.intermediate)?,
        heads,
        kv_heads: reader.size("num_key_value_heads", kv_default)?,
        head_dim,
        layers: vec![LayerSpec { window: None, rope: 0 }; layers],
        max_positions: reader.size("max_position_embeddings", defaults.max_positions)?,
        norm: NormKind::Rms { offset: 0.0 },
        norm_eps: reader.positive("rms_norm_eps")?.unwrap_or(1e-6),
        placement: Placement::Before,
        activation: reader.activation("hidden_act", Activation::Silu)?,
        gated: true,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        causal: true,
        ropes: vec![],
        learned: None,
        embedding_scale: 1.0,
        initializer_range: reader.positive("initializer_range")?.unwrap_or(0.02),
        padding: reader.padding(defaults.padding, vocab),
        dropout: DropoutRates {
            weights: reader.dropout("attention_dropout", 0.0)?,
            ..DropoutRates::default()
        },
    })
}

/// `rope_parameters`. What stands beside them and would change the rotation is refused.
fn rope_parameters<'a>(reader: &Reader<'a>) -> Result<Option<Reader<'a>>, ModelError> {
    let parameters = reader.nested("rope_parameters", "rope_parameters")?;
    if parameters.is_some() && reader.has("rope_scaling") {
        return Err(reader.fault("rope_scaling", "none beside rope_parameters"));
    }
    if reader.optional_number("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
        return Err(reader.fault("partial_rotary_factor", "1: the whole head is rotated"));
    }
    // Where both are there, transformers takes this one.
    let key = "original_max_position_embeddings";
    let scaling = match parameters {
        Some(parameters) => Some(parameters),
        None => reader.nested("rope_scaling", "rope_scaling")?,
    };
    if reader.has(key) && scaling.is_some() {
        let inner = match scaling {
            Some(scaling) => scaling.optional_size(key)?,
            None => None,
        };
        if inner != reader.optional_size(key)? {
            return Err(reader.fault(key, "the number that the rotation's parameters have"));
        }
    }
    Ok(parameters)
}

/// One rotation for all layers: of `rope_parameters`, or of `rope_theta` and `rope_scaling`.
fn only_rope(reader: &Reader<'_>, spec: &Spec) -> Result<Rope, ModelError> {
    let parameters = rope_parameters(reader)?;
    for key in ["full_attention", "sliding_attention"] {
        if let Some(parameters) = parameters.filter(|parameters| parameters.has(key)) {
            return Err(parameters.fault(key, "none: all layers of this model type rotate alike"));
        }
    }
    let theta = match parameters {
        Some(parameters) if parameters.has("rope_theta") => parameters,
        _ => *reader,
    };
    let scaling = match parameters {
        Some(parameters) => Some(parameters),
        None => reader.nested("rope_scaling", "rope_scaling")?,
    };
    rope::Source {
        theta,
        theta_key: "rope_theta",
        scaling,
        default_theta: 10_000.0,
        head_dim: spec.head_dim,
        max_positions: spec.max_positions,
    }
    .read()
}

/// Windows by `layer_types`, or else where `slides` says so.
fn windows(
    reader: &Reader<'_>,
    spec: &mut Spec,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<(), ModelError> {
    let names = reader.texts("layer_types")?;
    if let Some(names) = &names
        && names.len() != spec.layers.len()
    {
        let expected = format!("one for each of the {} layers", spec.layers.len());
        return Err(reader.fault("layer_types", &expected));
    }
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        let slides = match names.as_ref().map(|names| names[i]) {
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            Some(_) => {
                return Err(reader.fault("layer_types", "sliding_attention and full_attention"));
            }
            None => slides(i),
        };
        if slides {
            let Some(window) = window else {
                return Err(reader.fault("sliding_window", "a number: layer_types slide"));
            };
            layer.window = Some(window);
        }
    }
    Ok(())
}

/// A window of `sliding_window` tokens; a null is none.
fn window(reader: &Reader<'_>, default: usize) -> Result<Option<usize>, ModelError> {
    if reader.is_null("sliding_window") {
        return Ok(None);
    }
    reader.size("sliding_window", default).map(Some)
}

pub(super) fn llama(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    let mut spec = common(
        reader,
        &Defaults {
            vocab: 32_000,
            hidden: 4096,
            intermediate: 11_008,
            layers: 32,
            heads: 32,
            kv_heads: None,
            head_dim: None,
            max_positions: 2048,
            tied: false,
            padding: None,
        },
    )?;
    let bias = reader.flag("attention_bias", false)?;
    (spec.qkv_bias, spec.output_bias) = (bias, bias);
    spec.mlp_bias = reader.flag("mlp_bias", false)?;
    spec.ropes = vec![only_rope(reader, &spec)?];
    Ok(spec)
}

pub(super) fn mistral(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    let mut spec = common(
        reader,
        &Defaults {
            vocab: 32_000,
            hidden: 4096,
            intermediate: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: Some(8),
            head_dim: None,
            max_positions: 131_072,
            tied: false,
            padding: None,
        },
    )?;
    let window = window(reader, 4096)?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    spec.ropes = vec![only_rope(reader, &spec)?];
    Ok(spec)
}

fn qwen(reader: &Reader<'_>, head_dim: Option<usize>) -> Result<Spec, ModelError> {
    let mut spec = common(
        reader,
        &Defaults {
            vocab: 151_936,
            hidden: 4096,
            intermediate: 22_016,
            layers: 32,
            heads: 32,
            kv_heads: Some(32),
            head_dim,
            max_positions: 32_768,
            tied: false,
            padding: None,
        },
    )?;
    let slides = reader.flag("use_sliding_window", false)?;
    let names = reader.texts("layer_types")?.unwrap_or_default();
    if !slides && names.contains(&"sliding_attention") {
        return Err(reader.fault("use_sliding_window", "true: layer_types slide"));
    }
    let window = if slides { window(reader, 4096)? } else { None };
    let full = reader.optional_size("max_window_layers")?.unwrap_or(28);
    windows(reader, &mut spec, window, |i| window.is_some() && i >= full)?;
    spec.ropes = vec![only_rope(reader, &spec)?];
    Ok(spec)
}

pub(super) fn qwen2(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    let mut spec = qwen(reader, None)?;
    spec.qkv_bias = true;
    Ok(spec)
}

pub(super) fn qwen3(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    let mut spec = qwen(reader, Some(128))?;
    spec.qk_norm = true;
    let bias = reader.flag("attention_bias", false)?;
    (spec.qkv_bias, spec.output_bias) = (bias, bias);
    Ok(spec)
}

/// What Gemma 2 and 3 share.
fn gemma(reader: &Reader<'_>, vocab: usize, max_positions: usize) -> Result<Spec, ModelError> {
    let mut spec = common(
        reader,
        &Defaults {
            vocab,
            hidden: 2304,
            intermediate: 9216,
            layers: 26,
            heads: 8,
            kv_heads: Some(4),
            head_dim: Some(256),
            max_positions,
            tied: true,
            padding: Some(0),
        },
    )?;
    if reader.flag("use_bidirectional_attention", false)? {
        return Err(reader.fault("use_bidirectional_attention", "false"));
    }
    spec.family = Family::Gemma;
    spec.norm = NormKind::Rms { offset: 1.0 };
    spec.placement = Placement::BeforeAndAfter;
    spec.activation = reader.activation("hidden_activation", Activation::GeluTanh)?;
    let bias = reader.flag("attention_bias", false)?;
    (spec.qkv_bias, spec.output_bias) = (bias, bias);
    let scalar = reader.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    spec.attention_scale = 1.0 / scalar.sqrt();
    spec.embedding_scale = f64::from((spec.hidden as f64).sqrt() as f32);
    Ok(spec)
}

/// Sets the cap on logits; `default` where the key is absent, none where it is null.
fn softcap(
    reader: &Reader<'_>,
    key: &str,
    default: Option<f64>,
) -> Result<Option<f64>, ModelError> {
    if reader.is_null(key) { Ok(None) } else { Ok(reader.positive(key)?.or(default)) }
}

pub(super) fn gemma2(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    let mut spec = gemma(reader, 256_000, 8192)?;
    spec.attention_softcap = softcap(reader, "attn_logit_softcapping", Some(50.0))?;
    let cap = softcap(reader, "final_logit_softcapping", Some(30.0))?;
    if let Task::LanguageModel { softcap, .. } = &mut spec.task {
        *softcap = cap;
    }
    let window = window(reader, 4096)?;
    windows(reader, &mut spec, window, |i| i % 2 == 0)?;
    spec.ropes = vec![only_rope(reader, &spec)?];
    Ok(spec)
}

/// Two rotations: the first of layers that see everything, the second of those with a window.
pub(super) fn gemma3(reader: &Reader<'_>) -> Result<Spec, ModelError> {
    let mut spec = gemma(reader, 262_208, 131_072)?;
    spec.qk_norm = true;
    let cap = softcap(reader, "final_logit_softcapping", None)?;
    if let Task::LanguageModel { softcap, .. } = &mut spec.task {
        *softcap = cap;
    }
    let pattern = reader.size("sliding_window_pattern", 6)?;
    let window = window(reader, 4096)?;
    windows(reader, &mut spec, window, |i| !(i + 1).is_multiple_of(pattern))?;
    for layer in &mut spec.layers {
        layer.rope = usize::from(layer.window.is_some());
    }
    let parameters = rope_parameters(reader)?;
    for key in ["rope_type", "type", "factor", "rope_theta"] {
        if let Some(parameters) = parameters.filter(|parameters| parameters.has(key)) {
            let expected = "none here: it belongs to full_attention and sliding_attention";
            return Err(parameters.fault(key, expected));
        }
    }
    let full = match parameters {
        Some(parameters) => {
            parameters.nested("full_attention", "rope_parameters.full_attention")?
        }
        None => None,
    };
    let local = match parameters {
        Some(parameters) => {
            parameters.nested("sliding_attention", "rope_parameters.sliding_attention")?
        }
        None => None,
    };
    let scaling = match full {
        Some(full) => Some(full),
        None => reader.nested("rope_scaling", "rope_scaling")?,
    };
    let (head_dim, max_positions) = (spec.head_dim, spec.max_positions);
    let full = rope::Source {
        theta: full.filter(|full| full.has("rope_theta")).unwrap_or(*reader),
        theta_key: "rope_theta",
        scaling,
        default_theta: 1_000_000.0,
        head_dim,
        max_positions,
    };
    let local = rope::Source {
        theta: local.unwrap_or(*reader),
        theta_key: if local.is_some() { "rope_theta" } else { "rope_local_base_freq" },
        scaling: local,
        default_theta: 10_000.0,
        head_dim,
        max_positions,
    };
    spec.ropes = vec![full.read()?, local.read()?];
    Ok(spec)
}
