//! What the image models share: a convolution that is arranged for inference, and rows one by one.

use rayon::prelude::*;

use super::super::classifier::Inference;
use super::check_size;
use crate::error::ModelError;
use crate::kernel::conv::{
    Conv, Epilogue, Job, LANES, Lanes, Prepared, Shape, pack_normalized, place,
};
use crate::kernel::packed::PackedLinear;

/// A convolution with a bias for each output channel.
#[derive(Clone, Debug)]
pub(super) struct FrozenConv {
    pub(super) conv: Conv,
    filters: Prepared,
    bias: Vec<Lanes>,
}

impl FrozenConv {
    /// Output channel c gets `scale(c)` times its weights, plus `bias(c)`.
    pub(super) fn new(
        conv: Conv,
        weight: &[f32],
        scale: impl Fn(usize) -> f64,
        bias: impl Fn(usize) -> f64,
    ) -> Self {
        let mut lanes = vec![[0.0; LANES]; conv.output().blocks()];
        for (channel, lane) in lanes.as_flattened_mut().iter_mut().enumerate().take(conv.outputs) {
            *lane = bias(channel) as f32;
        }
        Self { filters: Prepared::new(&conv, weight, scale), conv, bias: lanes }
    }

    /// One image, then ReLU. `canvas` is overwritten.
    pub(super) fn apply(
        &self,
        image: &[Lanes],
        residual: Option<&[Lanes]>,
        canvas: &mut Vec<Lanes>,
        out: &mut Vec<Lanes>,
    ) {
        out.resize(self.conv.output().len(), [0.0; LANES]);
        canvas.clear();
        canvas.resize(self.conv.padded().len(), [0.0; LANES]);
        pulp::Arch::new().dispatch(Apply { layer: self, image, residual, canvas, out });
    }
}

struct Apply<'a> {
    layer: &'a FrozenConv,
    image: &'a [Lanes],
    residual: Option<&'a [Lanes]>,
    canvas: &'a mut [Lanes],
    out: &'a mut [Lanes],
}

impl pulp::WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { layer, image, residual, canvas, out } = self;
        let FrozenConv { conv, filters, bias } = layer;
        place(image, conv.input, canvas, conv.padded(), conv.padding, 1);
        let epilogue = Epilogue { residual, relu: true };
        Job { conv, filters, padded: canvas, bias, epilogue, out }.run(simd);
    }
}

/// Runs each row of `input` through `body`, which turns `input_width` features into `features`
/// others, and all of those through the linear layers. The next to last layer's output is the hidden
/// state. Where `body` gives false, the row is NaN throughout.
pub(super) fn infer_rows<T: Default + Send>(
    input: &[f32],
    rows: usize,
    (input_width, features): (usize, usize),
    body: impl Fn(&mut T, &[f32], &mut [f32]) -> bool + Sync,
    linear: &[PackedLinear],
) -> Result<Inference, ModelError> {
    check_size(input, rows, input_width)?;
    let mut hidden = vec![0.0; rows * features];
    hidden.par_chunks_mut(features).zip(input.par_chunks(input_width)).for_each_init(
        T::default,
        |scratch, (out, row)| {
            if !body(scratch, row, out) {
                out.fill(f32::NAN);
            }
        },
    );
    let mut logits = Vec::new();
    for (i, layer) in linear.iter().enumerate() {
        if i + 1 < linear.len() {
            hidden = layer.apply(&hidden, true);
        } else {
            logits = layer.apply(&hidden, false);
        }
    }
    let (classes, width) = (logits.len() / rows.max(1), hidden.len() / rows.max(1));
    for (row, logits) in logits.chunks_exact_mut(classes.max(1)).enumerate() {
        if logits.iter().any(|z| !z.is_finite()) {
            logits.fill(f32::NAN);
            hidden[row * width..][..width].fill(f32::NAN);
        }
    }
    Ok(Inference { logits, hidden })
}

/// (x - mean) / std of one row, in blocks of channels; false if an element of it is not finite, which
/// may be passed over on the way to the logits.
pub(super) fn normalize(
    row: &[f32],
    shape: Shape,
    mean: &[f32],
    std: &[f32],
    image: &mut Vec<Lanes>,
) -> bool {
    image.resize(shape.len(), [0.0; LANES]);
    pack_normalized(row, shape, (mean, std), image);
    image.as_flattened().iter().all(|x| x.is_finite())
}
