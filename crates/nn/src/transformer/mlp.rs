//! The feed-forward layer, gated or plain.

use super::config::{Activation, Spec};
use super::names::BlockNames;
use super::pass::Pass;
use super::weights::{Product, Projection, Source};
use crate::error::ModelError;
use crate::kernel::activation::{self, Gelu, GeluTanh, Relu, Silu, Tanh, gated, gated_backward};
use crate::kernel::precision::Stored;
use crate::layers::Parameter;

/// `down(act(gate) * up)`, or `down(act(up))`.
#[derive(Clone, Debug)]
pub(crate) struct FeedForward<P> {
    gate: Option<P>,
    up: P,
    down: P,
    activation: Activation,
}

/// What the backward pass needs: [tokens, intermediate] of either.
#[derive(Debug)]
pub(crate) struct FeedForwardTape {
    gate: Option<Stored>,
    up: Stored,
}

impl Activation {
    /// act(x).
    pub(crate) fn forward(self, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Relu => activation::forward(Relu, x),
            Self::Silu => activation::forward(Silu, x),
            Self::Gelu => activation::forward(Gelu, x),
            Self::GeluTanh => activation::forward(GeluTanh, x),
            Self::Tanh => activation::forward(Tanh, x),
        }
    }

    /// Turns the gradient of act(x) into that of x.
    pub(crate) fn backward(self, x: &[f32], grad: &mut [f32]) {
        match self {
            Self::Relu => activation::backward(Relu, x, grad),
            Self::Silu => activation::backward(Silu, x, grad),
            Self::Gelu => activation::backward(Gelu, x, grad),
            Self::GeluTanh => activation::backward(GeluTanh, x, grad),
            Self::Tanh => activation::backward(Tanh, x, grad),
        }
    }

    fn gated(self, gate: &[f32], up: &[f32]) -> Vec<f32> {
        match self {
            Self::Relu => gated(Relu, gate, up),
            Self::Silu => gated(Silu, gate, up),
            Self::Gelu => gated(Gelu, gate, up),
            Self::GeluTanh => gated(GeluTanh, gate, up),
            Self::Tanh => gated(Tanh, gate, up),
        }
    }

    fn gated_backward(self, gate: &[f32], up: &[f32], grad: &mut [f32]) -> Vec<f32> {
        match self {
            Self::Relu => gated_backward(Relu, gate, up, grad),
            Self::Silu => gated_backward(Silu, gate, up, grad),
            Self::Gelu => gated_backward(Gelu, gate, up, grad),
            Self::GeluTanh => gated_backward(GeluTanh, gate, up, grad),
            Self::Tanh => gated_backward(Tanh, gate, up, grad),
        }
    }
}

impl<P: Product> FeedForward<P> {
    pub(crate) fn new<S: Source<Product = P>>(
        source: &mut S,
        spec: &Spec,
        names: &BlockNames,
    ) -> Result<Self, ModelError> {
        let (d, f, bias) = (spec.hidden, spec.intermediate, spec.mlp_bias);
        Ok(Self {
            gate: match spec.gated {
                true => Some(source.product(&names.gate, [f, d], bias)?),
                false => None,
            },
            up: source.product(&names.up, [f, d], bias)?,
            down: source.product(&names.down, [d, f], bias)?,
            activation: spec.activation,
        })
    }

    /// `x` [tokens, d] to the same.
    pub(crate) fn forward(
        &self,
        x: &[f32],
        pass: &Pass,
    ) -> Result<(Vec<f32>, FeedForwardTape), ModelError> {
        let precision = pass.precision;
        let project = |layer: &P| -> Result<Vec<f32>, ModelError> {
            let mut out = layer.apply(x, precision)?;
            precision.round(&mut out);
            Ok(out)
        };
        let gate = self.gate.as_ref().map(project).transpose()?;
        let up = project(&self.up)?;
        let out = self.down.apply(&self.inner(gate.as_deref(), &up), precision)?;
        let gate = gate.map(|gate| pass.store(gate));
        Ok((out, FeedForwardTape { gate, up: pass.store(up) }))
    }

    /// What `down` sees.
    fn inner(&self, gate: Option<&[f32]>, up: &[f32]) -> Vec<f32> {
        match gate {
            Some(gate) => self.activation.gated(gate, up),
            None => self.activation.forward(up),
        }
    }
}

impl FeedForward<Projection> {
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let all = self.gate.iter().chain([&self.up, &self.down]);
        all.flat_map(Projection::parameters)
    }

    /// The gradient of the input `x` from `grad`, that of the output.
    pub(crate) fn backward(
        &self,
        tape: FeedForwardTape,
        x: &[f32],
        grad: &[f32],
        pass: &Pass,
    ) -> Result<Vec<f32>, ModelError> {
        let precision = pass.precision;
        let (gate, up) = (tape.gate.map(Stored::take), tape.up.take());
        let inner = self.inner(gate.as_deref(), &up);
        let mut to_inner = vec![0.0; inner.len()];
        self.down.backward(&inner, grad, &mut to_inner, false, precision)?;
        drop(inner);
        let mut to_x = vec![0.0; x.len()];
        match (&self.gate, &gate) {
            (Some(layer), Some(gate)) => {
                let to_up = self.activation.gated_backward(gate, &up, &mut to_inner);
                layer.backward(x, &to_inner, &mut to_x, false, precision)?;
                self.up.backward(x, &to_up, &mut to_x, true, precision)?;
            }
            _ => {
                self.activation.backward(&up, &mut to_inner);
                self.up.backward(x, &to_inner, &mut to_x, false, precision)?;
            }
        }
        Ok(to_x)
    }
}
