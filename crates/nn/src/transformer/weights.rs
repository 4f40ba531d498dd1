//! Weights that a forward pass reads: arranged for inference, or variables in training. The code of
//! the models is written once for both.

use crate::error::ModelError;
use crate::io::Tensors;
use crate::kernel::gemm::Matrix;
use crate::kernel::norm::Norm;
use crate::kernel::packed::PackedLinear;
use crate::kernel::precision::Precision;
use crate::kernel::storage::with_elements;
use crate::layers::{Parameter, lock};
use crate::rng::Philox;

use super::config::{NormKind, Spec};

/// A weight that rows are multiplied with, and a bias where there is one.
pub(crate) trait Product {
    /// [rows, inputs] to [rows, outputs]. Only a layer in training has a choice of precision.
    fn apply(&self, x: &[f32], precision: Precision) -> Result<Vec<f32>, ModelError>;
}

/// A vector or a table that is read as it is.
pub(crate) trait Values {
    fn with<R>(&self, body: impl FnOnce(&[f32]) -> R) -> Result<R, ModelError>;
}

/// Where weights come from, by name.
pub(crate) trait Source {
    type Product: Product;
    type Values: Values;

    /// `{name}.weight` [outputs, inputs] and, where `bias`, `{name}.bias` \[outputs\].
    fn product(
        &mut self,
        name: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<Self::Product, ModelError>;

    /// The tensor of that very name, which starts as `start` where it is not given.
    fn values(
        &mut self,
        name: &str,
        shape: &[usize],
        start: Start,
    ) -> Result<Self::Values, ModelError>;
}

/// Fresh values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Zeros,
    Ones,
    /// From a normal distribution of the model's own width.
    Normal,
}

impl Product for PackedLinear {
    fn apply(&self, x: &[f32], _: Precision) -> Result<Vec<f32>, ModelError> {
        Ok(Self::apply(self, x, false))
    }
}

impl Values for Vec<f32> {
    fn with<R>(&self, body: impl FnOnce(&[f32]) -> R) -> Result<R, ModelError> {
        Ok(body(self))
    }
}

/// A file's tensors, to be arranged for inference.
pub(crate) struct Arranged<'a>(pub(crate) &'a Tensors);

impl Arranged<'_> {
    fn take(&self, name: &str, expected: &[usize]) -> Result<&[f32], ModelError> {
        match self.0.get(name) {
            Some((shape, values)) if shape == expected => Ok(values),
            _ => Err(ModelError::Layer { tensor: name.to_owned(), expected: expected.to_vec() }),
        }
    }
}

impl Source for Arranged<'_> {
    type Product = PackedLinear;
    type Values = Vec<f32>;

    fn product(
        &mut self,
        name: &str,
        shape @ [outputs, inputs]: [usize; 2],
        bias: bool,
    ) -> Result<PackedLinear, ModelError> {
        let weight = self.take(&format!("{name}.weight"), &shape)?;
        let bias = match bias {
            true => Some(self.take(&format!("{name}.bias"), &[outputs])?),
            false => None,
        };
        Ok(PackedLinear::new(weight, bias, outputs, inputs))
    }

    fn values(&mut self, name: &str, shape: &[usize], _: Start) -> Result<Vec<f32>, ModelError> {
        self.take(name, shape).map(<[f32]>::to_vec)
    }
}

/// Variables, with random values: of a normal distribution around 0, biases 0, norms the identity,
/// as transformers starts its models.
pub(crate) struct Fresh<'a> {
    pub(crate) rng: &'a mut Philox,
    pub(crate) std: f64,
    /// What `ones` are, less a norm's offset.
    pub(crate) one: f32,
}

impl Fresh<'_> {
    fn draw(&mut self, start: Start, count: usize) -> Vec<f32> {
        match start {
            Start::Zeros => vec![0.0; count],
            Start::Ones => vec![self.one; count],
            Start::Normal => (0..count).map(|_| (self.std * self.rng.normal()) as f32).collect(),
        }
    }
}

impl Source for Fresh<'_> {
    type Product = Projection;
    type Values = Parameter;

    fn product(
        &mut self,
        name: &str,
        shape @ [outputs, inputs]: [usize; 2],
        bias: bool,
    ) -> Result<Projection, ModelError> {
        let weight = self.draw(Start::Normal, outputs * inputs);
        let weight = Parameter::new(format!("{name}.weight"), weight, &shape)?;
        let bias = match bias {
            true => Some(Parameter::new(format!("{name}.bias"), vec![0.0; outputs], &[outputs])?),
            false => None,
        };
        Ok(Projection { weight, bias })
    }

    fn values(
        &mut self,
        name: &str,
        shape: &[usize],
        start: Start,
    ) -> Result<Parameter, ModelError> {
        let values = self.draw(start, shape.iter().product());
        Ok(Parameter::new(name, values, shape)?)
    }
}

impl Values for Parameter {
    fn with<R>(&self, body: impl FnOnce(&[f32]) -> R) -> Result<R, ModelError> {
        Ok(with_elements(self.tensor(), "parameter", body)?)
    }
}

/// A linear layer in training.
#[derive(Clone, Debug)]
pub(crate) struct Projection {
    /// [outputs, inputs].
    pub(crate) weight: Parameter,
    /// \[outputs\].
    pub(crate) bias: Option<Parameter>,
}

impl Product for Projection {
    fn apply(&self, x: &[f32], precision: Precision) -> Result<Vec<f32>, ModelError> {
        let [outputs, inputs] = self.shape();
        let rows = x.len() / inputs;
        let mut out = match &self.bias {
            None => vec![0.0; rows * outputs],
            Some(bias) => bias.with(|bias| bias.repeat(rows))?,
        };
        let accumulate = self.bias.is_some();
        self.weight.with(|weight| {
            let weight = Matrix::new(weight, outputs, inputs).t();
            precision.multiply(&mut out, accumulate, Matrix::new(x, rows, inputs), weight);
        })?;
        Ok(out)
    }
}

impl Projection {
    fn shape(&self) -> [usize; 2] {
        match self.weight.shape() {
            [outputs, inputs] => [*outputs, *inputs],
            _ => [0, 0],
        }
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    /// Adds to the gradients of weight and bias, from `grad`, that of the output for the input `x`;
    /// the input's own goes to `to_input`, and is added there where `accumulate`.
    pub(crate) fn backward(
        &self,
        x: &[f32],
        grad: &[f32],
        to_input: &mut [f32],
        accumulate: bool,
        precision: Precision,
    ) -> Result<(), ModelError> {
        let [outputs, inputs] = self.shape();
        let rows = x.len() / inputs;
        let g = Matrix::new(grad, rows, outputs);
        let x = Matrix::new(x, rows, inputs);
        lock(self.weight.gradient()).add_product(precision, g.t(), x);
        if let Some(bias) = &self.bias {
            let mut sum = vec![0.0; outputs];
            for row in grad.chunks_exact(outputs) {
                sum.iter_mut().zip(row).for_each(|(sum, &g)| *sum += g);
            }
            lock(bias.gradient()).add(&sum);
        }
        self.weight.with(|weight| {
            let weight = Matrix::new(weight, outputs, inputs);
            precision.multiply(to_input, accumulate, g, weight);
        })
    }
}

/// The weights of a normalisation.
#[derive(Clone, Debug)]
pub(crate) struct NormWeights<V> {
    weight: V,
    bias: Option<V>,
    offset: f32,
    eps: f64,
}

impl<V: Values> NormWeights<V> {
    pub(crate) fn new<S: Source<Values = V>>(
        source: &mut S,
        spec: &Spec,
        name: &str,
        width: usize,
    ) -> Result<Self, ModelError> {
        let weight = source.values(&format!("{name}.weight"), &[width], Start::Ones)?;
        let (bias, offset) = match spec.norm {
            NormKind::Rms { offset } => (None, offset),
            NormKind::Layer => {
                (Some(source.values(&format!("{name}.bias"), &[width], Start::Zeros)?), 0.0)
            }
        };
        Ok(Self { weight, bias, offset, eps: spec.norm_eps })
    }

    fn with<R>(&self, body: impl FnOnce(Norm<'_>) -> R) -> Result<R, ModelError> {
        let (offset, eps) = (self.offset, self.eps);
        match &self.bias {
            None => self.weight.with(|weight| body(Norm { weight, offset, bias: None, eps })),
            Some(bias) => self.weight.with(|weight| {
                bias.with(|bias| body(Norm { weight, offset, bias: Some(bias), eps }))
            })?,
        }
    }

    /// [rows, width] to the same.
    pub(crate) fn forward(&self, x: &[f32]) -> Result<Vec<f32>, ModelError> {
        self.with(|norm| norm.forward(x))
    }
}

impl NormWeights<Parameter> {
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    /// The input's gradient; adds to those of the weights.
    pub(crate) fn backward(&self, x: &[f32], grad: &[f32]) -> Result<Vec<f32>, ModelError> {
        let gradients = self.with(|norm| norm.backward(x, grad))?;
        lock(self.weight.gradient()).add(&gradients.weight);
        if let Some(bias) = &self.bias {
            lock(bias.gradient()).add(&gradients.bias);
        }
        Ok(gradients.input)
    }
}

/// Adds row by row.
pub(crate) fn add(sum: &mut [f32], x: &[f32]) {
    sum.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x);
}
