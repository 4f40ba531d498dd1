//! Pooling of batches.

use rayon::prelude::*;

use super::batch::{Images, Pool};
use crate::kernel::conv::{Lanes, Shape};
use crate::kernel::pool;

/// The largest of each 2 x 2 pixels.
pub(crate) fn max_pool(pool: &Pool, input: &Images) -> Images {
    let (from, to) = (input.shape, pool::halved(input.shape));
    let mut out = pool.take(input.count(), to);
    out.data.par_chunks_mut(to.len()).zip(input.par_images()).for_each(|(out, image)| {
        pulp::Arch::new().dispatch(pool::MaxPool { image, shape: from, out });
    });
    out
}

/// The gradient of [`max_pool`] by its input, from the input, the output and the output's gradient.
pub(crate) fn max_pool_gradient(
    pool: &Pool,
    input: &Images,
    out: &Images,
    grad: &Images,
) -> Images {
    let mut to_input = pool.take(input.count(), input.shape);
    to_input
        .data
        .par_chunks_mut(input.shape.len())
        .zip(input.par_images())
        .zip(out.par_images().zip(grad.par_images()))
        .for_each(|((to_input, image), (out, grad))| {
            let shape = input.shape;
            pulp::Arch::new().dispatch(MaxGradient { image, shape, out, grad, to_input });
        });
    to_input
}

struct MaxGradient<'a> {
    image: &'a [Lanes],
    shape: Shape,
    out: &'a [Lanes],
    grad: &'a [Lanes],
    to_input: &'a mut [Lanes],
}

impl pulp::WithSimd for MaxGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { image, shape, out, grad, to_input } = self;
        pool::max_pool_gradient(simd, image, shape, out, grad, to_input);
    }
}

/// The mean of each channel of each image: [count, channels].
pub(crate) fn average_pool(input: &Images) -> Vec<f32> {
    let mut out = vec![0.0; input.count() * input.shape.channels];
    let rows = out.chunks_exact_mut(input.shape.channels);
    rows.zip(input.data.chunks_exact(input.shape.len()))
        .for_each(|(out, image)| pool::average(image, input.shape, out));
    out
}

/// The gradient of [`average_pool`] by images of `shape`, from [count, channels].
pub(crate) fn average_pool_gradient(pool: &Pool, grad: &[f32], shape: Shape) -> Images {
    let mut to_input = pool.take(grad.len() / shape.channels, shape);
    let images = to_input.data.par_chunks_mut(shape.len());
    images
        .zip(grad.par_chunks(shape.channels))
        .for_each(|(to_input, grad)| pool::average_gradient(grad, shape, to_input));
    to_input
}
