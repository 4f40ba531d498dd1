//! Convolution, batch normalisation, a residual where there is one, and ReLU.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use rayon::prelude::*;

use super::batch::{Images, Pool};
use super::shares::{Share, in_shares};
use crate::kernel::batch_norm::{
    Backward, Moments, Statistics, gradient_sums, lanes, scale_shift_relu, through_relu,
};
use crate::kernel::conv::{Conv, Epilogue, Job, LANES, Lanes, Prepared, Shape, place};
use crate::layers::{Parameter, lock};
use crate::rng::Philox;

/// Mean and variance that inference normalises with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Running {
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
}

/// max(0, norm(input * weight) + residual), normalised over the batch.
#[derive(Clone, Debug)]
pub(crate) struct ConvNorm {
    name: String,
    conv: Conv,
    eps: f64,
    momentum: f64,
    weight: Parameter,
    gamma: Parameter,
    beta: Parameter,
    running: Arc<Mutex<Running>>,
}

/// A layer's output, and what its backward needs to know of the way there.
#[derive(Debug)]
pub(crate) struct Normalized {
    pub(crate) out: Images,
    /// The convolution's output.
    raw: Images,
    statistics: Statistics,
    /// 1 / sqrt(v + eps) of each channel.
    inverse_std: Vec<f64>,
}

/// A batch's statistics on their way into a layer's running ones.
#[derive(Clone, Debug)]
pub(crate) struct RunningUpdate {
    name: String,
    running: Arc<Mutex<Running>>,
    next: Running,
}

impl RunningUpdate {
    /// Whether every statistic is a number that inference can use. An overflow in the variance makes
    /// the layer a constant, which neither loss nor gradient shows.
    pub(crate) fn is_finite(&self) -> bool {
        self.next.mean.iter().chain(&self.next.variance).all(|x| x.is_finite())
    }

    /// The layer: `{name}.running_mean` and `.running_var`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Takes the batch in.
    pub(crate) fn commit(self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = self.next;
    }
}

impl ConvNorm {
    /// Weights drawn from a normal distribution of variance 2 / fan-in (He et al., 2015), gamma 1,
    /// beta 0. Parameters `{prefix}conv{number}.weight`, `{prefix}bn{number}.weight` and `.bias`.
    ///
    /// # Errors
    ///
    /// If candle refuses to make the variables.
    pub(crate) fn new(
        prefix: &str,
        number: usize,
        conv: Conv,
        (eps, momentum): (f64, f64),
        rng: &mut Philox,
    ) -> Result<Self> {
        let (outputs, inputs, k) = (conv.outputs, conv.input.channels, conv.kernel);
        let fan_in = inputs * k * k;
        let std = (2.0 / fan_in as f64).sqrt();
        let weight = (0..outputs * fan_in).map(|_| (std * rng.normal()) as f32).collect();
        let name = format!("{prefix}bn{number}");
        Ok(Self {
            conv,
            eps,
            momentum,
            weight: Parameter::new(
                format!("{prefix}conv{number}.weight"),
                weight,
                &[outputs, inputs, k, k],
            )?,
            gamma: Parameter::new(format!("{name}.weight"), vec![1.0; outputs], &[outputs])?,
            beta: Parameter::new(format!("{name}.bias"), vec![0.0; outputs], &[outputs])?,
            running: Arc::new(Mutex::new(Running {
                mean: vec![0.0; outputs],
                variance: vec![1.0; outputs],
            })),
            name,
        })
    }

    /// Weight, gamma and beta.
    pub(crate) fn parameters(&self) -> [&Parameter; 3] {
        [&self.weight, &self.gamma, &self.beta]
    }

    /// Names and values of what is not trained: `{prefix}bn{number}.running_mean` and
    /// `.running_var`.
    pub(crate) fn buffers(&self) -> [(String, Vec<f32>); 2] {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |kind: &str, values: &[f32]| (format!("{}.{kind}", self.name), values.to_vec());
        [named("running_mean", &running.mean), named("running_var", &running.variance)]
    }

    /// Overwrites the running statistics.
    ///
    /// # Errors
    ///
    /// If there is not one of each for a channel.
    pub(crate) fn set_running(&self, mean: &[f32], variance: &[f32]) -> Result<()> {
        let channels = self.conv.outputs;
        if (mean.len(), variance.len()) != (channels, channels) {
            let (means, variances) = (mean.len(), variance.len());
            candle_core::bail!(
                "{}: {means} means and {variances} variances; expected {channels} of each",
                self.name
            );
        }
        let next = Running { mean: mean.to_vec(), variance: variance.to_vec() };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// Normalises with the mean and variance of this batch.
    pub(crate) fn forward(
        &self,
        pool: &Pool,
        input: &Images,
        residual: Option<&Images>,
    ) -> Result<Normalized> {
        let (conv, shape, count) = (self.conv, self.conv.output(), input.count());
        let filters = Prepared::new(&conv, &self.weight.values()?, |_| 1.0);
        let mut raw = pool.take(count, shape);
        let mut moments = vec![Moments::ZERO; count * shape.blocks()];
        let no_bias = vec![[0.0; LANES]; shape.blocks()];
        let canvas = || vec![[0.0; LANES]; conv.padded().len()];
        raw.data
            .par_chunks_mut(shape.len())
            .zip(input.par_images())
            .zip(moments.par_chunks_mut(shape.blocks()))
            .for_each_init(canvas, |padded, ((out, image), moments)| {
                let (conv, filters, bias) = (&conv, &filters, &no_bias);
                let job = Convolve { conv, filters, bias, image, padded, out, moments };
                pulp::Arch::new().dispatch(job);
            });
        let statistics = Statistics::combine(&moments, shape.blocks(), shape.pixels());
        let inverse_std: Vec<f64> =
            statistics.variance.iter().map(|v| 1.0 / (v + self.eps).sqrt()).collect();

        let (gamma, beta) = (self.gamma.values()?, self.beta.values()?);
        let scales: Vec<f64> = products(&gamma, &inverse_std);
        let shifts = beta.iter().zip(&scales).zip(&statistics.mean);
        let shifts = shifts.map(|((&beta, scale), mean)| f64::from(beta) - mean * scale);
        let shift = lanes(shifts, shape.blocks());
        let scale = lanes(scales.iter().copied(), shape.blocks());
        let mut out = pool.take(count, shape);
        out.data.par_chunks_mut(shape.len()).zip(raw.par_images()).enumerate().for_each(
            |(i, (out, raw))| {
                let residual =
                    residual.map(|images| &images.data[i * shape.len()..][..shape.len()]);
                let (scale, shift) = (&scale, &shift);
                pulp::Arch::new().dispatch(Normalize { raw, scale, shift, residual, out });
            },
        );
        Ok(Normalized { out, raw, statistics, inverse_std })
    }

    /// What the running statistics become: `(1 - momentum) * old + momentum * batch`, of the unbiased
    /// variance, as in PyTorch.
    pub(crate) fn running_update(&self, normalized: &Normalized) -> RunningUpdate {
        let Statistics { mean, variance, count } = &normalized.statistics;
        let unbiased = *count as f64 / (count - 1).max(1) as f64;
        let mut next = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let toward = |old: &mut f32, new: f64| {
            *old = ((1.0 - self.momentum) * f64::from(*old) + self.momentum * new) as f32;
        };
        next.mean.iter_mut().zip(mean).for_each(|(old, &new)| toward(old, new));
        let variances = next.variance.iter_mut().zip(variance);
        variances.for_each(|(old, &new)| toward(old, new * unbiased));
        let (name, running) = (self.name.clone(), Arc::clone(&self.running));
        RunningUpdate { name, running, next }
    }

    /// Fills the gradients of the parameters from `grad`, that of the output. Gives the gradient past
    /// the ReLU, which is the residual's too, and where `wanted` the input's plus `added`.
    pub(crate) fn backward(
        &self,
        pool: &Pool,
        input: &Images,
        normalized: &Normalized,
        mut grad: Images,
        added: Option<&Images>,
        wanted: bool,
    ) -> Result<(Images, Option<Images>)> {
        let Normalized { out, raw, statistics, inverse_std } = normalized;
        let (conv, shape, count) = (self.conv, self.conv.output(), input.count());
        let blocks = shape.blocks();
        let mean = lanes(statistics.mean.iter().copied(), blocks);
        let inverse = lanes(inverse_std.iter().copied(), blocks);

        let mut sums = vec![[[0f64; LANES]; 2]; count * blocks];
        sums.par_chunks_mut(blocks)
            .zip(grad.par_images())
            .zip(out.par_images().zip(raw.par_images()))
            .for_each(|((sums, grad), (out, raw))| {
                let (mean, inverse_std) = (&mean, &inverse);
                pulp::Arch::new().dispatch(Sum { grad, out, raw, mean, inverse_std, shape, sums });
            });
        let mut total = vec![[0f64; 2]; blocks * LANES];
        for image in sums.chunks_exact(blocks) {
            for (channel, total) in total.iter_mut().enumerate() {
                let sums = &image[channel / LANES];
                total[0] += sums[0][channel % LANES];
                total[1] += sums[1][channel % LANES];
            }
        }
        let of = |kind: usize| total.iter().map(move |sums| sums[kind]);
        let parameter = |kind| of(kind).take(conv.outputs).map(|x| x as f32).collect::<Vec<_>>();
        lock(self.beta.gradient()).add(&parameter(0));
        lock(self.gamma.gradient()).add(&parameter(1));

        let elements = statistics.count as f64;
        let scales: Vec<f64> = products(&self.gamma.values()?, inverse_std);
        let norm = Backward {
            mean: &mean,
            inverse_std: &inverse,
            scale: &lanes(scales.into_iter(), blocks),
            mean_grad: &lanes(of(0).map(|sum| sum / elements), blocks),
            mean_product: &lanes(of(1).map(|sum| sum / elements), blocks),
        };
        let (length, weight) = (shape.len(), self.weight.values()?);
        let (sum, _, to_input) = in_shares(
            (pool, &conv, &weight),
            &mut grad,
            wanted,
            || vec![[0.0; LANES]; length],
            |i, share, to_raw, grad, to_input| {
                let added = added.map(|images| &images.data[i * conv.input.len()..]);
                let input = &input.data[i * conv.input.len()..][..conv.input.len()];
                let out = &out.data[i * length..][..length];
                let raw = &raw.data[i * length..][..length];
                pulp::Arch::new().dispatch(BackwardNorm {
                    share,
                    norm,
                    input,
                    out,
                    raw,
                    added,
                    grad,
                    to_raw,
                    to_input,
                });
            },
        );
        lock(self.weight.gradient()).add(&sum.weight(&conv));
        Ok((grad, to_input))
    }
}

/// gamma / sqrt(v + eps).
fn products(gamma: &[f32], inverse_std: &[f64]) -> Vec<f64> {
    gamma.iter().zip(inverse_std).map(|(&gamma, inverse)| f64::from(gamma) * inverse).collect()
}

/// One image's convolution and moments.
struct Convolve<'a> {
    conv: &'a Conv,
    filters: &'a Prepared,
    bias: &'a [Lanes],
    image: &'a [Lanes],
    padded: &'a mut [Lanes],
    out: &'a mut [Lanes],
    moments: &'a mut [Moments],
}

impl pulp::WithSimd for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { conv, filters, bias, image, padded, out, moments } = self;
        place(image, conv.input, padded, conv.padded(), conv.padding, 1);
        let epilogue = Epilogue::NONE;
        Job { conv, filters, padded, bias, epilogue, out: &mut *out }.run(simd);
        let shape = conv.output();
        for (moments, block) in moments.iter_mut().zip(out.chunks_exact(shape.pixels())) {
            *moments = Moments::of(block, shape.width);
        }
    }
}

/// One image normalised.
struct Normalize<'a> {
    raw: &'a [Lanes],
    scale: &'a [Lanes],
    shift: &'a [Lanes],
    residual: Option<&'a [Lanes]>,
    out: &'a mut [Lanes],
}

impl pulp::WithSimd for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        scale_shift_relu(simd, self.raw, self.scale, self.shift, self.residual, self.out);
    }
}

/// One image's sums of gradients.
struct Sum<'a> {
    grad: &'a [Lanes],
    out: &'a [Lanes],
    raw: &'a [Lanes],
    mean: &'a [Lanes],
    inverse_std: &'a [Lanes],
    shape: Shape,
    sums: &'a mut [[[f64; LANES]; 2]],
}

impl pulp::WithSimd for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { grad, out, raw, mean, inverse_std, shape, sums } = self;
        gradient_sums(grad, out, raw, mean, inverse_std, shape.width, sums);
    }
}

/// One image backward.
struct BackwardNorm<'a, 'b> {
    share: &'a mut Share<'b>,
    norm: Backward<'a>,
    input: &'a [Lanes],
    out: &'a [Lanes],
    raw: &'a [Lanes],
    added: Option<&'a [Lanes]>,
    grad: &'a mut [Lanes],
    to_raw: &'a mut [Lanes],
    to_input: &'a mut [Lanes],
}

impl pulp::WithSimd for BackwardNorm<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        through_relu(simd, self.grad, self.out);
        self.norm.apply(self.grad, self.raw, self.to_raw);
        self.share.image(simd, self.input, self.to_raw, self.added, self.to_input);
    }
}
