//! What is around a sublayer: norms and the residual.

use super::names::SublayerNorms;
use super::weights::{NormWeights, Values, add};
use crate::error::ModelError;
use crate::layers::Parameter;

/// What the backward pass of a sublayer needs.
#[derive(Debug)]
pub(crate) struct SublayerTape<T> {
    /// The residual stream as it came, [tokens, d].
    x: Vec<f32>,
    /// Normalised, where the input is.
    normed: Option<Vec<f32>>,
    /// What the sublayer gave, where that is normalised.
    raw: Option<Vec<f32>>,
    /// The sum, where that is normalised.
    sum: Option<Vec<f32>>,
    inner: T,
}

/// `x` through a sublayer `f`, which gives its output and what its own backward pass needs.
pub(crate) fn forward<V: Values, T>(
    norms: &SublayerNorms<NormWeights<V>>,
    x: Vec<f32>,
    f: impl FnOnce(&[f32]) -> Result<(Vec<f32>, T), ModelError>,
) -> Result<(Vec<f32>, SublayerTape<T>), ModelError> {
    let normed = norms.before.as_ref().map(|norm| norm.forward(&x)).transpose()?;
    let (raw, inner) = f(normed.as_deref().unwrap_or(&x))?;
    let (mut sum, raw) = match &norms.after {
        Some(norm) => (norm.forward(&raw)?, Some(raw)),
        None => (raw, None),
    };
    add(&mut sum, &x);
    let (out, sum) = match &norms.outside {
        Some(norm) => (norm.forward(&sum)?, Some(sum)),
        None => (sum, None),
    };
    Ok((out, SublayerTape { x, normed, raw, sum, inner }))
}

/// The gradient of `x` from `grad`, that of the output. `f` turns the gradient of its output into that
/// of its input.
pub(crate) fn backward<T>(
    norms: &SublayerNorms<NormWeights<Parameter>>,
    tape: SublayerTape<T>,
    mut grad: Vec<f32>,
    f: impl FnOnce(T, &[f32], &[f32]) -> Result<Vec<f32>, ModelError>,
) -> Result<Vec<f32>, ModelError> {
    let SublayerTape { x, normed, raw, sum, inner } = tape;
    if let (Some(norm), Some(sum)) = (&norms.outside, &sum) {
        grad = norm.backward(sum, &grad)?;
    }
    let input = normed.as_deref().unwrap_or(&x);
    let to_input = match (&norms.after, &raw) {
        (Some(norm), Some(raw)) => f(inner, input, &norm.backward(raw, &grad)?)?,
        _ => f(inner, input, &grad)?,
    };
    match &norms.before {
        Some(norm) => add(&mut grad, &norm.backward(&x, &to_input)?),
        None => add(&mut grad, &to_input),
    }
    Ok(grad)
}
