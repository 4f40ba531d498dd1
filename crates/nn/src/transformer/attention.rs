//! Self-attention with grouped queries.

use super::config::{LayerSpec, Spec};
use super::names::BlockNames;
use super::pass::{Pass, Site};
use super::weights::{NormWeights, Product, Projection, Source, Values};
use crate::error::ModelError;
use crate::kernel::attention::{Attended, Heads, Scores, attend, backward};
use crate::kernel::precision::Stored;
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
    /// Number of the block.
    block: usize,
}

/// What the backward pass needs.
#[derive(Debug)]
pub(crate) struct AttentionTape {
    /// Queries and keys before their norms, where they have any, [tokens, heads * width].
    raw: Option<[Stored; 2]>,
    /// `[heads, length, width]` for each sequence, rotated.
    q: Stored,
    k: Stored,
    v: Stored,
    /// As [`Attended`] has them.
    out: Stored,
    log_sums: Vec<f32>,
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
        block: usize,
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
            block,
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
        pass: &Pass,
    ) -> Result<(Vec<f32>, AttentionTape), ModelError> {
        let Heads { queries, keys, width } = self.heads;
        let precision = pass.precision;
        let project = |layer: &P| layer.apply(x, precision);
        let (mut q, mut k, v) = (project(&self.q)?, project(&self.k)?, project(&self.v)?);
        let mut raw = None;
        if let Some([q_norm, k_norm]) = &self.qk_norms {
            [&mut q, &mut k].into_iter().for_each(|x| precision.round(x));
            let normed = [q_norm.forward(&q)?, k_norm.forward(&k)?];
            raw = Some([pass.store(q), pass.store(k)]);
            [q, k] = normed;
        }
        let mut q = to_heads(&q, layout, queries, width, rotation);
        let mut k = to_heads(&k, layout, keys, width, rotation);
        let mut v = to_heads(&v, layout, keys, width, None);
        [&mut q, &mut k, &mut v].into_iter().for_each(|x| precision.round(x));
        let mask = pass.mask(Site::Weights(self.block));
        let parts = |x| split(x, layout, keys, keys * width);
        let attended = match cache {
            None => attend(layout, self.heads, self.scores, mask, &q, &parts(&k), &parts(&v)),
            Some(cache) => {
                LayerCache::push(&mut cache.keys, parts(&k));
                LayerCache::push(&mut cache.values, parts(&v));
                let (keys, values) = (slices(&cache.keys), slices(&cache.values));
                attend(layout, self.heads, self.scores, mask, &q, &keys, &values)
            }
        };
        let Attended { mut out, log_sums } = attended;
        precision.round(&mut out);
        let merged = from_heads(&out, layout, queries, width, None);
        let result = self.output.apply(&merged, precision)?;
        let [q, k, v, out] = [q, k, v, out].map(|x| pass.store(x));
        Ok((result, AttentionTape { raw, q, k, v, out, log_sums }))
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
        pass: &Pass,
    ) -> Result<Vec<f32>, ModelError> {
        let Heads { queries, keys, width } = self.heads;
        let precision = pass.precision;
        let AttentionTape { raw, q, k, v, out, log_sums } = tape;
        let [q, k, v, out] = [q, k, v, out].map(Stored::take);
        let attended = Attended { out, log_sums };
        let merged = from_heads(&attended.out, layout, queries, width, None);
        let mut to_merged = vec![0.0; merged.len()];
        self.output.backward(&merged, grad, &mut to_merged, false, precision)?;
        let to_out = to_heads(&to_merged, layout, queries, width, None);
        let mask = pass.mask(Site::Weights(self.block));
        let qkv = [&q[..], &k, &v];
        let gradients = backward(layout, self.heads, self.scores, mask, qkv, &attended, &to_out);
        let mut to_q = from_heads(&gradients.q, layout, queries, width, rotation);
        let mut to_k = from_heads(&gradients.k, layout, keys, width, rotation);
        let to_v = from_heads(&gradients.v, layout, keys, width, None);
        if let (Some([q_norm, k_norm]), Some(raw)) = (&self.qk_norms, raw) {
            let [q, k] = raw.map(Stored::take);
            to_q = q_norm.backward(&q, &to_q)?;
            to_k = k_norm.backward(&k, &to_k)?;
        }
        let mut to_x = vec![0.0; x.len()];
        self.q.backward(x, &to_q, &mut to_x, false, precision)?;
        self.k.backward(x, &to_k, &mut to_x, true, precision)?;
        self.v.backward(x, &to_v, &mut to_x, true, precision)?;
        Ok(to_x)
    }
}
