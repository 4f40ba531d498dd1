//! Convolution, bias and ReLU.

use candle_core::Result;
use rayon::prelude::*;

use super::batch::{Images, Pool};
use crate::kernel::batch_norm::through_relu;
use crate::kernel::conv::{
    Conv, Epilogue, Filters, LANES, Lanes, Prepared, add_weight_gradient, convolve, place,
};
use crate::layers::{Parameter, lock, uniform_fan_in};
use crate::rng::Philox;

/// Images whose share of a weight's gradient is summed before the shares are: a fixed number, so
/// that the sum does not depend on the threads.
pub(super) const SHARE: usize = 8;

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
        let turned = Prepared::transposed(&conv, &self.weight.values()?);
        let mut to_input = wanted.then(|| pool.take(input.count(), conv.input));
        let mut pieces: Vec<&mut [Lanes]> = match &mut to_input {
            Some(images) => images.data.chunks_mut(conv.input.len()).collect(),
            None => (0..input.count()).map(|_| &mut [][..]).collect(),
        };
        let length = shape.len();
        let shares: Vec<(Filters, Vec<Lanes>)> = grad
            .data
            .par_chunks_mut(SHARE * length)
            .zip(out.data.par_chunks(SHARE * length))
            .zip(input.data.par_chunks(SHARE * conv.input.len()))
            .zip(pieces.par_chunks_mut(SHARE))
            .map(|(((grad, out), input), pieces)| {
                let mut share = Share::new(conv, &turned);
                let mut bias = vec![[0.0; LANES]; shape.blocks()];
                let images = grad.chunks_exact_mut(length).zip(out.chunks_exact(length));
                let images = images.zip(input.chunks_exact(conv.input.len())).zip(pieces);
                for (((grad, out), input), to_input) in images {
                    let job = Backward { share: &mut share, input, out, grad, to_input };
                    pulp::Arch::new().dispatch(BackwardRelu { job, bias: &mut bias });
                }
                (share.filters, bias)
            })
            .collect();
        drop(pieces);
        let mut sum = Filters::zeros(&conv);
        let mut bias = vec![[0.0; LANES]; shape.blocks()];
        for (filters, share) in &shares {
            sum.add(filters);
            let pairs = bias.as_flattened_mut().iter_mut().zip(share.as_flattened());
            pairs.for_each(|(sum, x)| *sum += x);
        }
        lock(self.weight.gradient()).add(&sum.weight(&conv));
        lock(self.bias.gradient()).add(&bias.as_flattened()[..conv.outputs]);
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
        convolve(simd, conv, filters, padded, bias, epilogue, out);
    }
}

/// What one thread needs for the backward pass of some images, and its share of the sum.
pub(super) struct Share<'a> {
    conv: Conv,
    transposed: Conv,
    turned: &'a Prepared,
    no_bias: Vec<Lanes>,
    /// Canvases whose borders stay zero.
    padded: Vec<Lanes>,
    spread: Vec<Lanes>,
    pub(super) filters: Filters,
}

impl<'a> Share<'a> {
    pub(super) fn new(conv: Conv, turned: &'a Prepared) -> Self {
        let transposed = conv.transposed();
        Self {
            conv,
            transposed,
            turned,
            no_bias: vec![[0.0; LANES]; conv.input.blocks()],
            padded: vec![[0.0; LANES]; conv.padded().len()],
            spread: vec![[0.0; LANES]; transposed.padded().len()],
            filters: Filters::zeros(&conv),
        }
    }

    /// One image: adds to the weight's gradient and, unless `to_input` is empty, computes the
    /// input's, plus `added`.
    #[inline(always)]
    pub(super) fn image<S: pulp::Simd>(
        &mut self,
        simd: S,
        input: &[Lanes],
        grad: &[Lanes],
        added: Option<&[Lanes]>,
        to_input: &mut [Lanes],
    ) {
        let Self { conv, transposed, turned, no_bias, padded, spread, filters } = self;
        place(input, conv.input, padded, conv.padded(), conv.padding, 1);
        add_weight_gradient(simd, conv, padded, grad, filters);
        if !to_input.is_empty() {
            place(grad, conv.output(), spread, transposed.padded(), conv.spread(), conv.stride);
            let epilogue = Epilogue { residual: added, relu: false };
            convolve(simd, transposed, turned, spread, no_bias, epilogue, to_input);
        }
    }
}

/// One image backward.
struct Backward<'a, 'b> {
    share: &'a mut Share<'b>,
    input: &'a [Lanes],
    out: &'a [Lanes],
    grad: &'a mut [Lanes],
    to_input: &'a mut [Lanes],
}

struct BackwardRelu<'a, 'b> {
    job: Backward<'a, 'b>,
    bias: &'a mut [Lanes],
}

impl pulp::WithSimd for BackwardRelu<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Backward { share, input, out, grad, to_input } = self.job;
        through_relu(simd, grad, out);
        for (sum, grad) in self.bias.iter_mut().zip(grad.chunks_exact(share.conv.output().pixels()))
        {
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
    /// share.
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
            let cases: Vec<Case> = (0..SHARE + 3)
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
