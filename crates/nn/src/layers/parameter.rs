//! A named variable with a gradient buffer that lives as long as it does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{
    CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, Var, backprop::GradStore,
};

use crate::kernel::precision::Precision;
use crate::kernel::{gemm, storage};

/// Where a layer's backward leaves the gradient of a weight, instead of handing a fresh tensor to
/// candle, which would add it to a tensor of zeros.
#[derive(Debug, Default)]
pub(crate) struct Gradient {
    values: Vec<f32>,
    /// Whether `values` holds (part of) the gradient of the backward pass under way.
    written: bool,
}

/// Shared between a parameter and the operations of the graph that use it.
pub(crate) type SharedGradient = Arc<Mutex<Gradient>>;

/// Room for the gradient of `count` values.
pub(crate) fn shared_gradient(count: usize) -> SharedGradient {
    Arc::new(Mutex::new(Gradient { values: vec![0.0; count], written: false }))
}

/// Locks; a panic elsewhere leaves nothing half-made here that a new backward would not overwrite.
pub(crate) fn lock(gradient: &SharedGradient) -> MutexGuard<'_, Gradient> {
    gradient.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gradient {
    /// Adds `lhs * rhs` to the gradient, or to the first rows of it where the product has fewer:
    /// overwrites it the first time in a backward pass.
    pub(crate) fn add_product(
        &mut self,
        precision: Precision,
        lhs: gemm::Matrix<'_, f32>,
        rhs: gemm::Matrix<'_, f32>,
    ) {
        let (product, rest) = self.values.split_at_mut(lhs.rows() * rhs.columns());
        if !self.written {
            rest.fill(0.0);
        }
        precision.multiply(product, self.written, lhs, rhs);
        self.written = true;
    }

    /// Adds `values` to the gradient, or to the beginning of it where they are fewer: overwrites it
    /// the first time in a backward pass.
    pub(crate) fn add(&mut self, values: &[f32]) {
        let (sums, rest) = self.values.split_at_mut(values.len());
        if self.written {
            sums.iter_mut().zip(values).for_each(|(sum, &x)| *sum += x);
        } else {
            sums.copy_from_slice(values);
            rest.fill(0.0);
        }
        self.written = true;
    }

    /// Adds each row of `values` [rows, width] to the row of the gradient that `rows` names, if any.
    pub(crate) fn add_rows(
        &mut self,
        width: usize,
        rows: impl IntoIterator<Item = Option<usize>>,
        values: &[f32],
    ) {
        if !self.written {
            self.values.fill(0.0);
            self.written = true;
        }
        for (row, values) in rows.into_iter().zip(values.chunks_exact(width)) {
            let Some(row) = row else { continue };
            let sum = &mut self.values[row * width..][..width];
            sum.iter_mut().zip(values).for_each(|(sum, &x)| *sum += x);
        }
    }

    /// The gradient of the backward pass that has ended.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }
}

/// A trainable f32 tensor: its name in checkpoints, its candle variable and its gradient.
#[derive(Clone, Debug)]
pub struct Parameter {
    name: String,
    variable: Var,
    gradient: SharedGradient,
}

impl Parameter {
    /// A parameter that starts with `values`, row-major, of shape `shape`.
    ///
    /// # Errors
    ///
    /// If `values` does not hold as many elements as `shape`.
    pub fn new(name: impl Into<String>, values: Vec<f32>, shape: &[usize]) -> Result<Self> {
        let gradient = shared_gradient(values.len());
        Ok(Self {
            name: name.into(),
            variable: Var::from_vec(values, shape, &Device::Cpu)?,
            gradient,
        })
    }

    /// Name in checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        self.variable.dims()
    }

    /// The variable, to build graphs on.
    pub fn tensor(&self) -> &Tensor {
        self.variable.as_tensor()
    }

    /// A copy of the values, row-major.
    ///
    /// # Errors
    ///
    /// If the variable is not a contiguous f32 tensor on the CPU.
    pub fn values(&self) -> Result<Vec<f32>> {
        storage::with_elements(self.tensor(), "values", <[f32]>::to_vec)
    }

    /// Overwrites the values.
    ///
    /// # Errors
    ///
    /// If their number is another.
    pub fn set(&self, values: &[f32]) -> Result<()> {
        self.variable.set(&Tensor::from_slice(values, self.shape(), &Device::Cpu)?)
    }

    /// Changes the values in place.
    pub(crate) fn update(&self, body: impl FnOnce(&mut [f32])) -> Result<()> {
        struct Update<F>(std::cell::Cell<Option<F>>);
        impl<F: FnOnce(&mut [f32])> InplaceOp1 for Update<F> {
            fn name(&self) -> &'static str {
                "update"
            }

            fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
                let (CpuStorage::F32(values), Some((start, end))) =
                    (storage, layout.contiguous_offsets())
                else {
                    candle_core::bail!("update: expected a contiguous f32 variable");
                };
                if let Some(body) = self.0.take() {
                    body(&mut values[start..end]);
                }
                Ok(())
            }
        }
        self.variable.inplace_op1(&Update(std::cell::Cell::new(Some(body))))
    }

    /// The buffer that operations on this parameter leave its gradient in.
    pub(crate) fn gradient(&self) -> &SharedGradient {
        &self.gradient
    }

    /// A copy of the gradient of the last backward pass, row-major.
    pub fn gradient_values(&self) -> Vec<f32> {
        lock(&self.gradient).values.clone()
    }

    /// Whether a backward pass has left a gradient.
    pub(crate) fn has_gradient(&self) -> bool {
        lock(&self.gradient).written
    }

    /// Forgets the gradient: the next backward pass overwrites it.
    pub fn clear_gradient(&self) {
        lock(&self.gradient).written = false;
    }

    /// Takes in what candle's backward collected for this variable, from operations that know
    /// nothing of the buffer. Returns whether the variable has a gradient at all.
    ///
    /// # Errors
    ///
    /// If that gradient is not an f32 tensor on the CPU.
    pub fn collect_gradient(&self, store: &mut GradStore) -> Result<bool> {
        let mut gradient = lock(&self.gradient);
        if let Some(tensor) = store.remove(self.tensor()) {
            storage::with_elements(&tensor.contiguous()?, "gradient", |values| {
                gradient.add(values);
            })?;
        }
        Ok(gradient.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_stock_operations_are_collected_and_added() {
        let p = Parameter::new("w", vec![1.0, 2.0], &[2]).unwrap();
        let loss = p.tensor().sqr().unwrap().sum_all().unwrap();
        p.clear_gradient();
        assert!(p.collect_gradient(&mut loss.backward().unwrap()).unwrap());
        assert_eq!(lock(p.gradient()).values(), [2.0, 4.0]);
        assert!(p.collect_gradient(&mut loss.backward().unwrap()).unwrap());
        assert_eq!(lock(p.gradient()).values(), [4.0, 8.0]);
    }

    #[test]
    fn a_variable_outside_the_graph_has_no_gradient() {
        let p = Parameter::new("w", vec![1.0], &[1]).unwrap();
        let other = Parameter::new("v", vec![1.0], &[1]).unwrap();
        let mut store = other.tensor().sum_all().unwrap().backward().unwrap();
        assert!(!p.collect_gradient(&mut store).unwrap());
    }

    #[test]
    fn update_and_set_change_the_variable_itself() {
        let p = Parameter::new("w", vec![1.0, 2.0], &[2]).unwrap();
        let alias = p.tensor().clone();
        p.update(|values| values[0] = 7.0).unwrap();
        assert_eq!(alias.to_vec1::<f32>().unwrap(), [7.0, 2.0]);
        p.set(&[3.0, 4.0]).unwrap();
        assert_eq!(alias.to_vec1::<f32>().unwrap(), [3.0, 4.0]);
        assert!(p.set(&[1.0]).is_err());
    }
}
