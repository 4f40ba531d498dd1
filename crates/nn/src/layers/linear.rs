//! A fused fully connected layer: product, bias and, where asked for, ReLU.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CpuStorageRef, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::init::uniform_fan_in;
use super::parameter::{Parameter, SharedGradient, lock};
use crate::kernel::gemm::{Matrix, matmul};
use crate::kernel::precision::Precision;
use crate::kernel::{real::Real, storage};
use crate::rng::Philox;

/// `input * weight^T + bias`, with the weight stored [outputs, inputs] as PyTorch does.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Parameter,
    bias: Parameter,
}

impl Linear {
    /// Random weights, as PyTorch's `nn.Linear` draws them; parameters `{name}.weight` and
    /// `{name}.bias`.
    ///
    /// # Errors
    ///
    /// If candle refuses to make the variables.
    pub fn new(name: &str, inputs: usize, outputs: usize, rng: &mut Philox) -> Result<Self> {
        let weight = uniform_fan_in(rng, inputs, outputs * inputs);
        let bias = uniform_fan_in(rng, inputs, outputs);
        Ok(Self {
            weight: Parameter::new(format!("{name}.weight"), weight, &[outputs, inputs])?,
            bias: Parameter::new(format!("{name}.bias"), bias, &[outputs])?,
        })
    }

    /// The [outputs, inputs] weight.
    pub fn weight(&self) -> &Parameter {
        &self.weight
    }

    /// The \[outputs\] bias.
    pub fn bias(&self) -> &Parameter {
        &self.bias
    }

    /// [rows, inputs] to [rows, outputs], followed by max(0, x) where `relu`. In the backward pass
    /// the gradients of weight and bias go to their parameters' own buffers; none is computed for
    /// an input that nothing differentiable led to.
    ///
    /// # Errors
    ///
    /// If `input` is not a contiguous f32 tensor of that shape on the CPU.
    pub fn forward(&self, input: &Tensor, relu: bool) -> Result<Tensor> {
        let buffers = Some([self.weight.gradient().clone(), self.bias.gradient().clone()]);
        input.apply_op3(self.weight.tensor(), self.bias.tensor(), Fused { relu, buffers })
    }
}

/// The operation: [rows, inputs], [outputs, inputs], [outputs] to [rows, outputs].
struct Fused {
    relu: bool,
    /// Where the gradients of weight and bias go; none: to candle.
    buffers: Option<[SharedGradient; 2]>,
}

impl Fused {
    fn forward<T: Real>(
        &self,
        [input, weight, bias]: [(&CpuStorage, &Layout); 3],
    ) -> Result<(Vec<T>, Shape)> {
        let (rows, inputs) = input.1.shape().dims2()?;
        let (outputs, width) = weight.1.shape().dims2()?;
        if width != inputs || bias.1.dims() != [outputs] {
            candle_core::bail!(
                "linear: input {:?}, weight {:?} and bias {:?} do not fit",
                input.1.shape(),
                weight.1.shape(),
                bias.1.shape()
            );
        }
        let x = storage::contiguous(input.0, input.1, self.name())?;
        let w = storage::contiguous(weight.0, weight.1, self.name())?;
        let bias = storage::contiguous(bias.0, bias.1, self.name())?;
        let mut out = Vec::with_capacity(rows * outputs);
        (0..rows).for_each(|_| out.extend_from_slice(bias));
        matmul(&mut out, true, Matrix::new(x, rows, inputs), Matrix::new(w, outputs, inputs).t());
        if self.relu {
            // Not `max`: NaN must stay NaN, and minus infinity too, for the loss to notice.
            let least = T::from_f64(f64::NEG_INFINITY);
            let clear = |y: T| y < T::zero() && y > least;
            out.iter_mut().for_each(|y| *y = if clear(*y) { T::zero() } else { *y });
        }
        Ok((out, (rows, outputs).into()))
    }

    /// Gradient before the ReLU, from the layer's output and the gradient after it.
    fn unrelu<T: Real>(output: &[T], grad: &[T]) -> Vec<T> {
        let pass = |(&y, &g): (&T, &T)| if y > T::zero() { g } else { T::zero() };
        output.iter().zip(grad).map(pass).collect()
    }

    fn backward<T: Real>(&self, node: &Node<'_>) -> Result<[Option<Tensor>; 3]> {
        let name = self.name();
        let grad = node.grad.contiguous()?;
        if !self.relu {
            return storage::with_elements::<T, _>(&grad, name, |g| self.operands(node, g))?;
        }
        let masked = storage::with_elements::<T, _>(node.output, name, |y| {
            storage::with_elements::<T, _>(&grad, name, |g| Self::unrelu(y, g))
        })??;
        self.operands(node, &masked)
    }

    /// Gradients of input, weight and bias from the gradient before the ReLU.
    fn operands<T: Real>(&self, node: &Node<'_>, grad: &[T]) -> Result<[Option<Tensor>; 3]> {
        let (rows, inputs) = node.input.dims2()?;
        let outputs = node.weight.dim(0)?;
        let device = node.input.device();
        let g = Matrix::new(grad, rows, outputs);
        let to_input = if node.input.track_op() {
            let product = storage::with_elements::<T, _>(node.weight, self.name(), |w| {
                let mut out = vec![T::zero(); rows * inputs];
                matmul(&mut out, false, g, Matrix::new(w, outputs, inputs));
                out
            })?;
            Some(Tensor::from_vec(product, (rows, inputs), device)?)
        } else {
            None
        };
        let mut to_bias = vec![T::zero(); outputs];
        for row in grad.chunks_exact(outputs) {
            to_bias.iter_mut().zip(row).for_each(|(sum, &g)| *sum += g);
        }
        let [to_weight, to_bias] = storage::with_elements::<T, _>(node.input, self.name(), |x| {
            if let Some(buffers) = &self.buffers {
                fill(buffers, [rows, outputs, inputs], grad, x, &to_bias)?;
                return Ok([None, None]);
            }
            let mut out = vec![T::zero(); outputs * inputs];
            matmul(&mut out, false, g.t(), Matrix::new(x, rows, inputs));
            Result::Ok([
                Some(Tensor::from_vec(out, (outputs, inputs), device)?),
                Some(Tensor::from_vec(to_bias, outputs, device)?),
            ])
        })??;
        Ok([to_input, to_weight, to_bias])
    }
}

/// Leaves the gradients of weight and bias in their parameters' buffers, which are f32.
fn fill<T: Real>(
    [weight, bias]: &[SharedGradient; 2],
    [rows, outputs, inputs]: [usize; 3],
    grad: &[T],
    x: &[T],
    to_bias: &[T],
) -> Result<()> {
    let f32s = (T::cpu_storage_ref(grad), T::cpu_storage_ref(x), T::cpu_storage_ref(to_bias));
    let (CpuStorageRef::F32(grad), CpuStorageRef::F32(x), CpuStorageRef::F32(to_bias)) = f32s
    else {
        return storage::unsupported("linear with parameters", T::DTYPE);
    };
    let g = Matrix::new(grad, rows, outputs);
    lock(weight).add_product(Precision::F32, g.t(), Matrix::new(x, rows, inputs));
    lock(bias).add(to_bias);
    Ok(())
}

/// What candle hands to a backward.
struct Node<'a> {
    input: &'a Tensor,
    weight: &'a Tensor,
    output: &'a Tensor,
    grad: &'a Tensor,
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let operands = [(input, input_layout), (weight, weight_layout), (bias, bias_layout)];
        match input.dtype() {
            DType::F32 => self.forward(operands).map(|(out, shape)| (CpuStorage::F32(out), shape)),
            DType::F64 => self.forward(operands).map(|(out, shape)| (CpuStorage::F64(out), shape)),
            other => storage::unsupported(self.name(), other),
        }
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let node = Node { input, weight, output, grad };
        let [input, weight, bias] = match grad.dtype() {
            DType::F32 => self.backward::<f32>(&node)?,
            DType::F64 => self.backward::<f64>(&node)?,
            other => return storage::unsupported(self.name(), other),
        };
        Ok((input, weight, bias))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn var(rng: &mut Philox, shape: &[usize]) -> Var {
        let values = (0..shape.iter().product()).map(|_| rng.normal()).collect::<Vec<f64>>();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// A scalar with a different gradient for every output.
    fn weighted(y: &Tensor) -> Tensor {
        let n = y.elem_count();
        let weights = Tensor::arange(1.0, n as f64 + 1.0, &Device::Cpu).unwrap();
        (y.flatten_all().unwrap() * weights).unwrap().sum_all().unwrap()
    }

    #[test]
    fn gradients_equal_central_differences() {
        for relu in [false, true] {
            let mut rng = Philox::new(11, u64::from(relu));
            let operands = [var(&mut rng, &[3, 4]), var(&mut rng, &[5, 4]), var(&mut rng, &[5])];
            let run = || {
                let [x, w, b] = operands.each_ref().map(Var::as_tensor);
                weighted(&x.apply_op3(w, b, Fused { relu, buffers: None }).unwrap())
            };
            let store = run().backward().unwrap();
            for operand in &operands {
                let grad = store.get(operand).unwrap().flatten_all().unwrap();
                for (i, &found) in grad.to_vec1::<f64>().unwrap().iter().enumerate() {
                    let values = operand.flatten_all().unwrap().to_vec1::<f64>().unwrap();
                    let at = |step: f64| {
                        let mut moved = values.clone();
                        moved[i] += step;
                        let moved = Tensor::from_vec(moved, operand.dims(), &Device::Cpu).unwrap();
                        operand.set(&moved).unwrap();
                        run().to_scalar::<f64>().unwrap()
                    };
                    let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
                    at(0.0);
                    assert!((found - expected).abs() < 1e-7, "relu {relu}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn parameter_buffers_hold_what_candle_would_collect() {
        let mut rng = Philox::new(12, 0);
        let layer = Linear::new("l", 4, 5, &mut rng).unwrap();
        let x = var(&mut rng, &[3, 4]).to_dtype(DType::F32).unwrap();
        let weighted = |y: Tensor| weighted(&y.to_dtype(DType::F64).unwrap());
        let [w, b] = [layer.weight(), layer.bias()];
        let fused = Fused { relu: true, buffers: None };
        let stock = weighted(x.apply_op3(w.tensor(), b.tensor(), fused).unwrap());
        let stock = stock.backward().unwrap();
        let loss = weighted(layer.forward(&x, true).unwrap());
        for passes in [1.0, 2.0] {
            let mut store = loss.backward().unwrap();
            for p in [w, b] {
                assert!(store.get(p.tensor()).is_none());
                assert!(p.collect_gradient(&mut store).unwrap());
                let expected = stock.get(p.tensor()).unwrap().affine(passes, 0.0).unwrap();
                let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(lock(p.gradient()).values(), expected);
            }
        }
    }

    #[test]
    fn no_gradient_is_computed_for_data() {
        let layer = Linear::new("l", 2, 2, &mut Philox::new(13, 0)).unwrap();
        let x = Tensor::new(&[[1f32, 2.0]], &Device::Cpu).unwrap();
        let store = layer.forward(&x, false).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(store.get(&x).is_none());
    }

    #[test]
    fn relu_keeps_what_is_not_finite() {
        let layer = Linear::new("l", 1, 3, &mut Philox::new(14, 0)).unwrap();
        let x = Tensor::new(&[[f32::NAN]], &Device::Cpu).unwrap();
        let y = layer.forward(&x, true).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[0].iter().all(|y| y.is_nan()));
        for x in [f32::INFINITY, f32::NEG_INFINITY] {
            let x = Tensor::new(&[[x]], &Device::Cpu).unwrap();
            let y = layer.forward(&x, true).unwrap().to_vec2::<f32>().unwrap();
            assert!(y[0].iter().all(|y| y.is_infinite()), "{y:?}");
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let layer = Linear::new("l", 3, 2, &mut Philox::new(15, 0)).unwrap();
        let x = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
        let error = layer.forward(&x, false).unwrap_err().to_string();
        assert!(error.contains("[1, 4]") && error.contains("[2, 3]"), "{error}");
    }
}
