//! What is around a sublayer: norms and the residual.

use super::names::SublayerNorms;
use super::pass::{Pass, Site};
use super::weights::{NormWeights, Values, add};
use crate::error::ModelError;
use crate::kernel::precision::Stored;
use crate::layers::Parameter;

/// What the backward pass of a sublayer needs.
#[derive(Debug)]
pub(crate) struct SublayerTape<T> {
    /// The residual stream as it came, [tokens, d].
    x: Vec<f32>,
    /// Normalised, where the input is.
    normed: Option<Stored>,
    /// What the sublayer gave, where that is normalised.
    raw: Option<Vec<f32>>,
    /// The sum, where that is normalised.
    sum: Option<Vec<f32>>,
    inner: T,
}

/// `x` through a sublayer `f`, which gives its output and what its own backward pass needs. `site` is
/// where of that output is dropped.
pub(crate) fn forward<V: Values, T>(
    norms: &SublayerNorms<NormWeights<V>>,
    (pass, site): (&Pass, Site),
    x: Vec<f32>,
    f: impl FnOnce(&[f32]) -> Result<(Vec<f32>, T), ModelError>,
) -> Result<(Vec<f32>, SublayerTape<T>), ModelError> {
    let mut normed = norms.before.as_ref().map(|norm| norm.forward(&x)).transpose()?;
    normed.iter_mut().for_each(|normed| pass.precision.round(normed));
    let (mut raw, inner) = f(normed.as_deref().unwrap_or(&x))?;
    pass.drop_at(site, &mut raw);
    let (mut sum, raw) = match &norms.after {
        Some(norm) => (norm.forward(&raw)?, Some(raw)),
        None => (raw, None),
    };
    add(&mut sum, &x);
    let (out, sum) = match &norms.outside {
        Some(norm) => (norm.forward(&sum)?, Some(sum)),
        None => (sum, None),
    };
    let normed = normed.map(|normed| pass.store(normed));
    Ok((out, SublayerTape { x, normed, raw, sum, inner }))
}

/// The gradient of `x` from `grad`, that of the output. `f` turns the gradient of its output into that
/// of its input.
pub(crate) fn backward<T>(
    norms: &SublayerNorms<NormWeights<Parameter>>,
    (pass, site): (&Pass, Site),
    tape: SublayerTape<T>,
    mut grad: Vec<f32>,
    f: impl FnOnce(T, &[f32], &[f32]) -> Result<Vec<f32>, ModelError>,
) -> Result<Vec<f32>, ModelError> {
    let SublayerTape { x, normed, raw, sum, inner } = tape;
    if let (Some(norm), Some(sum)) = (&norms.outside, &sum) {
        grad = norm.backward(sum, &grad)?;
    }
    let normed = normed.map(Stored::take);
    let input = normed.as_deref().unwrap_or(&x);
    let mut to_output = match (&norms.after, &raw) {
        (Some(norm), Some(raw)) => Some(norm.backward(raw, &grad)?),
        _ => None,
    };
    if let Some(mask) = pass.mask(site) {
        mask.apply(to_output.get_or_insert_with(|| grad.clone()));
    }
    let to_input = f(inner, input, to_output.as_deref().unwrap_or(&grad))?;
    match &norms.before {
        Some(norm) => add(&mut grad, &norm.backward(&x, &to_input)?),
        None => add(&mut grad, &to_input),
    }
    Ok(grad)
}
