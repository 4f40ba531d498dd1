//! A body of layers as one node of candle's graph.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::kernel::storage;
use crate::layers::Parameter;

/// A tensor of `shape` that holds `values` and depends on `parameter`. When a gradient reaches it,
/// `backward` is called with it, row-major, to fill the gradient buffers of all parameters that the
/// values were computed with.
///
/// # Errors
///
/// If there are not as many values as `shape` says.
pub(crate) fn node(
    parameter: &Parameter,
    values: Vec<f32>,
    shape: (usize, usize),
    backward: impl Fn(&[f32]) -> Result<()> + Send + Sync + 'static,
) -> Result<Tensor> {
    if shape.0.checked_mul(shape.1) != Some(values.len()) {
        candle_core::bail!("node: {} values do not fill {shape:?}", values.len());
    }
    parameter.tensor().apply_op1(Node { values, shape, backward })
}

struct Node<F> {
    values: Vec<f32>,
    shape: (usize, usize),
    backward: F,
}

impl<F: Fn(&[f32]) -> Result<()> + Send + Sync> CustomOp1 for Node<F> {
    fn name(&self) -> &'static str {
        "image model"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.values.clone()), self.shape.into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        storage::with_elements::<f32, _>(&grad, self.name(), |grad| (self.backward)(grad))??;
        // The parameter's gradient is in its buffer.
        Ok(None)
    }
}
