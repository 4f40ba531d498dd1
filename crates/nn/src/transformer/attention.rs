//! Self-attention with grouped queries.

use super::config::{LayerSpec, Spec};
use super::names::BlockNames;
use super::weights::{NormWeights, Product, Projection, Source, Values};
use crate::error::ModelError;
use crate::kernel::attention::{Attended, Heads, Scores, attend, backward};
use crate::kernel::rope::{Layout, Rotation, from_heads, split, to_heads};
use crate::layers::Parameter;

/// Projections, norms of queries and keys, and what a query sees.
#[derive(Clone, Debug)]
pub(crate) struct Attention<P, V> {
    q: P,
    k: P,
    v: P,
    output: P,
    qk_norms: Option<[NormWeights<V>; 2]>,
    heads: Heads,
    scores: Scores,
}

/// What the backward pass needs.
#[derive(Debug)]
pub(crate) struct AttentionTape {
    /// Queries and keys before their norms, where they have any, [tokens, heads * width].
    raw: Option<[Vec<f32>; 2]>,
    /// `[heads, length, width]` for each sequence, rotated.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Attended,
}

/// Keys and values of one layer that were computed before: for each sequence and key head,
/// [past, width].
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<Vec<f32>>,
    pub(crate) values: Vec<Vec<f32>>,
}

impl LayerCache {
    /// Forgets the sequences that do not go on.
    pub(crate) fn keep(&mut self, stay: &[bool]) {
        // Key heads of each sequence; 0 where nothing is kept yet.
        let heads = self.keys.len() / stay.len().max(1);
        for all in [&mut self.keys, &mut self.values] {
            let mut staying = stay.iter().flat_map(|stay| std::iter::repeat_n(*stay, heads));
            all.retain(|_| staying.next() == Some(true));
        }
    }

    fn push(all: &mut Vec<Vec<f32>>, parts: Vec<&[f32]>) {
        all.resize(parts.len(), Vec::new());
        all.iter_mut().zip(parts).for_each(|(all, part)| all.extend_from_slice(part));
    }
}

fn slices(all: &[Vec<f32>]) -> Vec<&[f32]> {
    all.iter().map(Vec::as_slice).collect()
}

impl<P: Product, V: Values> Attention<P, V> {
    pub(crate) fn new<S: Source<Product = P, Values = V>>(
        source: &mut S,
        spec: &Spec,
        layer: LayerSpec,
        names: &BlockNames,
    ) -> Result<Self, ModelError> {
        let (d, q, kv) = (spec.hidden, spec.q_width(), spec.kv_width());
        let norm = |source: &mut S, name: &str| NormWeights::new(source, spec, name, spec.head_dim);
        Ok(Self {
            q: source.product(&names.q, [q, d], spec.qkv_bias)?,
            k: source.product(&names.k, [kv, d], spec.qkv_bias)?,
            v: source.product(&names.v, [kv, d], spec.qkv_bias)?,
            output: source.product(&names.output, [d, q], spec.output_bias)?,
            qk_norms: match spec.qk_norm {
                true => Some([norm(source, &names.q_norm)?, norm(source, &names.k_norm)?]),
                false => None,
            },
            heads: Heads { queries: spec.heads, keys: spec.kv_heads, width: spec.head_dim },
            scores: Scores {
                scale: spec.attention_scale as f32,
                softcap: spec.attention_softcap.map(|cap| cap as f32),
                causal: spec.causal,
                window: layer.window,
            },
        })
    }

    /// `x` [tokens, d] to the same. With a cache, the keys and values of these tokens join it, and
    /// queries see all that is in it.
    pub(crate) fn forward(
        &self,
        x: &[f32],
        layout: &Layout,
        rotation: Option<&Rotation>,
        cache: Option<&mut LayerCache>,
    ) -> Result<(Vec<f32>, AttentionTape), ModelError> {
        let Heads { queries, keys, width } = self.heads;
        let (q, k, v) = (self.q.apply(x)?, self.k.apply(x)?, self.v.apply(x)?);
        let (q, k, raw) = match &self.qk_norms {
            None => (q, k, None),
            Some([q_norm, k_norm]) => (q_norm.forward(&q)?, k_norm.forward(&k)?, Some([q, k])),
        };
        let q = to_heads(&q, layout, queries, width, rotation);
        let k = to_heads(&k, layout, keys, width, rotation);
        let v = to_heads(&v, layout, keys, width, None);
        let parts = |x| split(x, layout, keys, keys * width);
        let attended = match cache {
            None => attend(layout, self.heads, self.scores, &q, &parts(&k), &parts(&v)),
            Some(cache) => {
                LayerCache::push(&mut cache.keys, parts(&k));
                LayerCache::push(&mut cache.values, parts(&v));
                let (keys, values) = (slices(&cache.keys), slices(&cache.values));
                attend(layout, self.heads, self.scores, &q, &keys, &values)
            }
        };
        let merged = from_heads(&attended.out, layout, queries, width, None);
        Ok((self.output.apply(&merged)?, AttentionTape { raw, q, k, v, attended }))
    }
}

impl Attention<Projection, Parameter> {
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let projections = [&self.q, &self.k, &self.v, &self.output];
        let norms = self.qk_norms.iter().flatten().flat_map(NormWeights::parameters);
        projections.into_iter().flat_map(Projection::parameters).chain(norms)
    }

    /// The gradient of the input `x` from `grad`, that of the output.
    pub(crate) fn backward(
        &self,
        tape: AttentionTape,
        x: &[f32],
        grad: &[f32],
        layout: &Layout,
        rotation: Option<&Rotation>,
    ) -> Result<Vec<f32>, ModelError> {
        let Heads { queries, keys, width } = self.heads;
        let AttentionTape { raw, q, k, v, attended } = tape;
        let merged = from_heads(&attended.out, layout, queries, width, None);
        let mut to_merged = vec![0.0; merged.len()];
        self.output.backward(&merged, grad, &mut to_merged, false)?;
        let to_out = to_heads(&to_merged, layout, queries, width, None);
        let gradients = backward(layout, self.heads, self.scores, [&q, &k, &v], &attended, &to_out);
        let mut to_q = from_heads(&gradients.q, layout, queries, width, rotation);
        let mut to_k = from_heads(&gradients.k, layout, keys, width, rotation);
        let to_v = from_heads(&gradients.v, layout, keys, width, None);
        if let (Some([q_norm, k_norm]), Some([q, k])) = (&self.qk_norms, &raw) {
            to_q = q_norm.backward(q, &to_q)?;
            to_k = k_norm.backward(k, &to_k)?;
        }
        let mut to_x = vec![0.0; x.len()];
        self.q.backward(x, &to_q, &mut to_x, false)?;
        self.k.backward(x, &to_k, &mut to_x, true)?;
        self.v.backward(x, &to_v, &mut to_x, true)?;
        Ok(to_x)
    }
}
