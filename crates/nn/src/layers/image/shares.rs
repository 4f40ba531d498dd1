//! The backward pass of a batch, in shares that do not depend on the threads.

use rayon::prelude::*;

use super::batch::{Images, Pool};
use crate::kernel::conv::{
    Conv, Epilogue, Filters, Job, LANES, Lanes, Prepared, add_weight_gradient, place,
};

/// Images whose part of a weight's gradient is summed before the parts are: a fixed number, so that
/// the sum does not depend on the threads.
pub(super) const SHARE: usize = 8;
/// Shares that are summed up before the next are begun, which bounds their memory.
pub(super) const WAVE: usize = 16;

/// What one thread needs for the backward pass of some images, and its share of the sum.
pub(super) struct Share<'a> {
    conv: Conv,
    transposed: Conv,
    /// None: no gradient of the input is wanted.
    turned: Option<&'a Prepared>,
    no_bias: Vec<Lanes>,
    /// Canvases whose borders stay zero.
    padded: Vec<Lanes>,
    spread: Vec<Lanes>,
    filters: Filters,
}

impl<'a> Share<'a> {
    fn new(conv: Conv, turned: Option<&'a Prepared>) -> Self {
        let transposed = conv.transposed();
        Self {
            conv,
            transposed,
            turned,
            no_bias: vec![[0.0; LANES]; conv.input.blocks()],
            padded: vec![[0.0; LANES]; conv.padded().len()],
            spread: vec![[0.0; LANES]; turned.map_or(0, |_| transposed.padded().len())],
            filters: Filters::zeros(&conv),
        }
    }

    /// One image: adds to the weight's gradient and, where it is wanted, computes the input's, plus
    /// `added`.
    #[inline(always)]
    pub(super) fn image<S: pulp::Simd>(
        &mut self,
        simd: S,
        input: &[Lanes],
        grad: &[Lanes],
        added: Option<&[Lanes]>,
        to_input: &mut [Lanes],
    ) {
        let Self { conv, transposed, turned, no_bias, padded, spread, filters: sum } = self;
        place(input, conv.input, padded, conv.padded(), conv.padding, 1);
        add_weight_gradient(simd, conv, padded, grad, sum);
        if let Some(filters) = *turned {
            place(grad, conv.output(), spread, transposed.padded(), conv.spread(), conv.stride);
            let epilogue = Epilogue { residual: added, relu: false };
            let (conv, padded, bias) = (&*transposed, &*spread, &*no_bias);
            Job { conv, filters, padded, bias, epilogue, out: to_input }.run(simd);
        }
    }
}

/// Calls `body` with every image's number, its share, what the share keeps beside (from `beside`),
/// the gradient of its output and room for that of its input, which is empty unless `wanted`. Returns
/// the gradient of the `weight`, what the shares kept, in order, and the gradient of the input.
pub(super) fn in_shares<T: Send>(
    (pool, conv, weight): (&Pool, &Conv, &[f32]),
    grad: &mut Images,
    wanted: bool,
    beside: impl Fn() -> T + Sync,
    body: impl Fn(usize, &mut Share<'_>, &mut T, &mut [Lanes], &mut [Lanes]) + Sync,
) -> (Filters, Vec<T>, Option<Images>) {
    let (count, length) = (grad.count(), grad.shape.len());
    let turned = wanted.then(|| Prepared::transposed(conv, weight));
    let mut to_input = wanted.then(|| pool.take(count, conv.input));
    let mut pieces: Vec<&mut [Lanes]> = match &mut to_input {
        Some(images) => images.data.chunks_mut(conv.input.len()).collect(),
        None => (0..count).map(|_| &mut [][..]).collect(),
    };
    let (mut sum, mut kept) = (Filters::zeros(conv), Vec::new());
    let waves = grad.data.chunks_mut(WAVE * SHARE * length).zip(pieces.chunks_mut(WAVE * SHARE));
    for (wave, (grads, pieces)) in waves.enumerate() {
        let shares = grads.par_chunks_mut(SHARE * length).zip(pieces.par_chunks_mut(SHARE));
        let shares: Vec<(Filters, T)> = shares
            .enumerate()
            .map(|(i, (grads, pieces))| {
                let first = (wave * WAVE + i) * SHARE;
                let (mut share, mut own) = (Share::new(*conv, turned.as_ref()), beside());
                let images = grads.chunks_exact_mut(length).zip(pieces).enumerate();
                for (image, (grad, to_input)) in images {
                    body(first + image, &mut share, &mut own, grad, to_input);
                }
                (share.filters, own)
            })
            .collect();
        for (filters, own) in shares {
            sum.add(&filters);
            kept.push(own);
        }
    }
    drop(pieces);
    (sum, kept, to_input)
}
