//! Convolution, bias and ReLU.

use candle_core::Result;
use rayon::prelude::*;

use super::batch::{Images, Pool};
use super::shares::{Share, in_shares};
use crate::kernel::batch_norm::through_relu;
use crate::kernel::conv::{Conv, Epilogue, Job, LANES, Lanes, Prepared, place};
use crate::layers::{Parameter, lock, uniform_fan_in};
use crate::rng::Philox;

/// max(0, input * weight + bias).
#[derive(Clone, Debug)]
pub(crate) struct ConvRelu {
    conv: Conv,
    weight: Parameter,
    bias: Parameter,
}

impl ConvRelu {
    /// Random weights, as PyTorch's `nn.Conv2d` draws them; parameters `{name}.weight` [outputs,
    /// inputs, kernel, kernel] and `{name}.bias`.
    ///
    /// # Errors
    ///
    /// If candle refuses to make the variables.
    pub(crate) fn new(name: &str, conv: Conv, rng: &mut Philox) -> Result<Self> {
        let (outputs, inputs, k) = (conv.outputs, conv.input.channels, conv.kernel);
        let fan_in = inputs * k * k;
        let weight = uniform_fan_in(rng, fan_in, outputs * fan_in);
        let bias = uniform_fan_in(rng, fan_in, outputs);
        Ok(Self {
            conv,
            weight: Parameter::new(format!("{name}.weight"), weight, &[outputs, inputs, k, k])?,
            bias: Parameter::new(format!("{name}.bias"), bias, &[outputs])?,
        })
    }

    /// Weight and bias.
    pub(crate) fn parameters(&self) -> [&Parameter; 2] {
        [&self.weight, &self.bias]
    }

    /// The layer's output.
    pub(crate) fn forward(&self, pool: &Pool, input: &Images) -> Result<Images> {
        let (conv, shape) = (self.conv, self.conv.output());
        let filters = Prepared::new(&conv, &self.weight.values()?, |_| 1.0);
        let mut bias = vec![[0.0; LANES]; shape.blocks()];
        bias.as_flattened_mut()[..conv.outputs].copy_from_slice(&self.bias.values()?);
        let mut out = pool.take(input.count(), shape);
        let canvas = || vec![[0.0; LANES]; conv.padded().len()];
        out.data.par_chunks_mut(shape.len()).zip(input.par_images()).for_each_init(
            canvas,
            |padded, (out, image)| {
                let (conv, filters, bias) = (&conv, &filters, &bias);
                pulp::Arch::new().dispatch(Forward { conv, filters, bias, image, padded, out });
            },
        );
        Ok(out)
    }

    /// Fills the gradients of weight and bias from `grad`, that of the output `out`, and gives the
    /// input's where it is `wanted`.
    pub(crate) fn backward(
        &self,
        pool: &Pool,
        input: &Images,
        out: &Images,
        mut grad: Images,
        wanted: bool,
    ) -> Result<Option<Images>> {
        let (conv, shape) = (self.conv, self.conv.output());
        let length = shape.len();
        let weight = self.weight.values()?;
        let blank = || vec![[0.0; LANES]; shape.blocks()];
        let (sum, bias, to_input) = in_shares(
            (pool, &conv, &weight),
            &mut grad,
            wanted,
            blank,
            |i, share, bias, grad, to_input| {
                let input = &input.data[i * conv.input.len()..][..conv.input.len()];
                let out = &out.data[i * length..][..length];
                pulp::Arch::new().dispatch(BackwardRelu {
                    share,
                    input,
                    out,
                    grad,
                    bias,
                    to_input,
                });
            },
        );
        let mut total = blank();
        for lanes in bias {
            let pairs = total.as_flattened_mut().iter_mut().zip(lanes.as_flattened());
            pairs.for_each(|(sum, x)| *sum += x);
        }
        lock(self.weight.gradient()).add(&sum.weight(&conv));
        lock(self.bias.gradient()).add(&total.as_flattened()[..conv.outputs]);
        Ok(to_input)
    }
}

/// One image forward.
struct Forward<'a> {
    conv: &'a Conv,
    filters: &'a Prepared,
    bias: &'a [Lanes],
    image: &'a [Lanes],
    padded: &'a mut [Lanes],
    out: &'a mut [Lanes],
}

impl pulp::WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { conv, filters, bias, image, padded, out } = self;
        place(image, conv.input, padded, conv.padded(), conv.padding, 1);
        let epilogue = Epilogue { residual: None, relu: true };
        Job { conv, filters, padded, bias, epilogue, out }.run(simd);
    }
}

/// One image backward.
struct BackwardRelu<'a, 'b> {
    share: &'a mut Share<'b>,
    input: &'a [Lanes],
    out: &'a [Lanes],
    grad: &'a mut [Lanes],
    bias: &'a mut [Lanes],
    to_input: &'a mut [Lanes],
}

impl pulp::WithSimd for BackwardRelu<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { share, input, out, grad, bias, to_input } = self;
        through_relu(simd, grad, out);
        let pixels = grad.len() / bias.len();
        for (sum, grad) in bias.iter_mut().zip(grad.chunks_exact(pixels)) {
            for lanes in grad {
                let sums = S::as_mut_simd_f32s(sum).0.iter_mut();
                let grads = S::as_simd_f32s(lanes).0;
                sums.zip(grads).for_each(|(sum, &g)| *sum = simd.add_f32s(*sum, g));
            }
        }
        share.image(simd, input, grad, None, to_input);
    }
}

#[cfg(test)]
mod tests {
    use super::super::shares::{SHARE, WAVE};
    use super::*;
    use crate::kernel::conv::reference::{Case, normals};
    use crate::kernel::conv::{Shape, unpack};

    fn planes(images: &Images) -> Vec<Vec<f32>> {
        let images_of = images.data.chunks_exact(images.shape.len());
        let planes = images_of.map(|image| {
            let mut planes = vec![0.0; images.shape.features()];
            unpack(image, images.shape, &mut planes);
            planes
        });
        planes.collect()
    }

    /// Every kernel that is picked by size, against the definition in f64; more images than one
    /// share, and of the last more than one wave.
    #[test]
    fn gradients_are_those_of_the_definition() {
        for (inputs, outputs, size, kernel, stride, padding) in [
            (16, 16, 16, 3, 1, 1),
            (17, 35, 9, 3, 2, 1),
            (1, 6, 28, 5, 1, 2),
            (6, 16, 14, 5, 1, 0),
            (3, 16, 8, 3, 1, 1),
            (5, 3, 7, 4, 2, 3),
            (20, 4, 6, 1, 2, 0),
            (2, 2, 5, 5, 1, 4),
        ] {
            let input = Shape::new(inputs, size, size);
            let conv = Conv { input, outputs, kernel, stride, padding };
            let (mut rng, pool) = (Philox::new(3, outputs as u64), Pool::default());
            let layer = ConvRelu::new("conv1", conv, &mut rng).unwrap();
            let [weight, bias] = layer.parameters();
            let count = if size == 5 { WAVE * SHARE + 3 } else { SHARE + 3 };
            let cases: Vec<Case> = (0..count)
                .map(|_| Case {
                    weight: weight.values().unwrap(),
                    bias: bias.values().unwrap(),
                    ..Case::new(conv, &mut rng)
                })
                .collect();
            let all: Vec<f32> = cases.iter().flat_map(|case| case.input.clone()).collect();
            let images = Images::normalized(&pool, &all, input, &[], &[]);
            let out = layer.forward(&pool, &images).unwrap();
            let grads: Vec<Vec<f32>> =
                cases.iter().map(|_| normals(&mut rng, conv.output().features())).collect();
            let grad = Images::normalized(&pool, &grads.concat(), conv.output(), &[], &[]);
            let to_input = layer.backward(&pool, &images, &out, grad, true).unwrap().unwrap();

            let mut expected = [vec![0.0; weight.values().unwrap().len()], vec![0.0; outputs]];
            let rows = cases.iter().zip(planes(&out)).zip(&grads).zip(planes(&to_input));
            for (((case, out), grad), to_input) in rows {
                let passed: Vec<f32> =
                    out.iter().zip(grad).map(|(&y, &g)| if y > 0.0 { g } else { 0.0 }).collect();
                let [by_input, by_weight, by_bias] = case.gradients(&passed);
                for (sum, part) in expected.iter_mut().zip([by_weight, by_bias]) {
                    sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
                }
                for (found, expected) in to_input.iter().zip(by_input) {
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "{conv:?}");
                }
            }
            for (p, expected) in [weight, bias].iter().zip(expected) {
                for (found, expected) in p.gradient_values().iter().zip(expected) {
                    let off = (f64::from(*found) - expected).abs();
                    assert!(off < 1e-3, "{} of {conv:?}: {found}, not {expected}", p.name());
                }
            }
        }
    }
}
