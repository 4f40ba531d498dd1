//! The loss as the last node of a graph.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

use super::batch::{LossParts, evaluate};
use super::config::LossConfig;
use super::target::SoftTarget;
use crate::error::LossError;
use crate::kernel::{real::Real, storage};

/// Loss of `logits` [rows, classes] as a scalar to call `backward` on, and its terms. The gradient
/// is computed here, together with the value. Labels of a weight of 0 may be left out; given, they
/// are measured and change nothing else.
///
/// # Errors
///
/// A [`LossError`] for a configuration out of range, logits without rows or classes, labels that
/// are missing, of the wrong size or no labels at all, or a divergence that the labels' encoding
/// has no meaning for. Non-finite logits are no error here: they give a non-finite loss.
pub fn loss(
    logits: &Tensor,
    hard: Option<&[u32]>,
    soft: Option<&SoftTarget>,
    config: &LossConfig,
) -> std::result::Result<(Tensor, LossParts), LossError> {
    match logits.dtype() {
        DType::F32 => attach::<f32>(logits, hard, soft, config),
        DType::F64 => attach::<f64>(logits, hard, soft, config),
        other => Ok(storage::unsupported("loss", other)?),
    }
}

fn attach<T: Real>(
    logits: &Tensor,
    hard: Option<&[u32]>,
    soft: Option<&SoftTarget>,
    config: &LossConfig,
) -> std::result::Result<(Tensor, LossParts), LossError> {
    let (rows, classes) = logits.dims2()?;
    let (parts, gradient) = storage::with_elements::<T, _>(logits, "loss", |logits| {
        evaluate(logits, rows, classes, hard, soft, config)
    })??;
    let gradient = Tensor::from_vec(gradient, (rows, classes), logits.device())?;
    Ok((logits.apply_op1(Loss { value: parts.total, gradient })?, parts))
}

/// A scalar whose derivative is known already.
struct Loss {
    value: f64,
    gradient: Tensor,
}

impl CustomOp1 for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let value = match logits.dtype() {
            DType::F64 => CpuStorage::F64(vec![self.value]),
            _ => CpuStorage::F32(vec![self.value as f32]),
        };
        Ok((value, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let scale = grad.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if scale == 1.0 {
            return Ok(Some(self.gradient.clone()));
        }
        Ok(Some(self.gradient.affine(scale, 0.0)?))
    }
}
