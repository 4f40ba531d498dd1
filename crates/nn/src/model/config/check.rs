//! Bounds that several architectures share.

use crate::error::ModelError;
use crate::kernel::conv::{LANES, Shape};

/// Largest width of a layer, and most parameters: bounds what a configuration file can make the
/// process allocate to about what a machine can hold.
const MAX_WIDTH: usize = 1 << 24;
const MAX_PARAMETERS: usize = 1 << 36;

pub(crate) fn refuse(
    field: &str,
    value: impl std::fmt::Display,
    expected: &str,
) -> Result<(), ModelError> {
    let (field, expected) = (field.to_owned(), expected.to_owned());
    Err(ModelError::Config { field, value: value.to_string(), expected })
}

pub(crate) fn within(
    field: &str,
    value: usize,
    range: std::ops::RangeInclusive<usize>,
) -> Result<(), ModelError> {
    if range.contains(&value) {
        return Ok(());
    }
    refuse(field, value, &format!("{} to {}", range.start(), range.end()))
}

pub(crate) fn size(field: &str, value: usize, least: usize) -> Result<(), ModelError> {
    within(field, value, least..=MAX_WIDTH)
}

pub(crate) fn parameters(layers: impl Iterator<Item = usize>) -> Result<(), ModelError> {
    let sum = layers.fold(0usize, usize::saturating_add);
    if sum <= MAX_PARAMETERS {
        return Ok(());
    }
    refuse("number of parameters", sum, &format!("at most {MAX_PARAMETERS}"))
}

/// Elements of the largest image on the way through a model, the filling of blocks included: a
/// quarter of a gigabyte, of which inference keeps a few for each thread.
const MAX_ACTIVATION: usize = 1 << 26;

/// What a convolution reads and gives for one row, and what a row is.
pub(super) fn images(
    field: &str,
    value: usize,
    shapes: impl Iterator<Item = Shape>,
) -> Result<(), ModelError> {
    // No product overflows: every size has been bounded before.
    let largest = shapes.map(|shape| shape.len().saturating_mul(LANES)).max().unwrap_or(0);
    if largest <= MAX_ACTIVATION {
        return Ok(());
    }
    let expected = format!(
        "a size whose images have at most {MAX_ACTIVATION} elements on their way through the \
         model; they have {largest}"
    );
    refuse(field, value, &expected)
}

pub(super) fn dropout(field: &str, p: f32) -> Result<(), ModelError> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    refuse(field, p, "0 or more and below 1")
}

pub(super) fn rescale_factor(factor: f64) -> Result<(), ModelError> {
    if factor.is_finite() && factor > 0.0 {
        return Ok(());
    }
    refuse("rescale_factor", factor, "a finite number above 0")
}

pub(super) fn mean(field: &str, mean: f32) -> Result<(), ModelError> {
    if mean.is_finite() { Ok(()) } else { refuse(field, mean, "a finite number") }
}

pub(super) fn std(field: &str, std: f32) -> Result<(), ModelError> {
    if std.is_finite() && std > 0.0 {
        return Ok(());
    }
    refuse(field, std, "a finite number above 0")
}

/// Mean and standard deviation for each of `channels` channels; either list may be empty.
pub(super) fn normalization(
    channels: usize,
    means: &[f32],
    stds: &[f32],
) -> Result<(), ModelError> {
    for (field, count) in [("image_mean", means.len()), ("image_std", stds.len())] {
        if count != 0 && count != channels {
            let expected = format!("one for each of the {channels} channels, or none");
            return refuse(&format!("number of values in {field}"), count, &expected);
        }
    }
    for (i, &value) in means.iter().enumerate() {
        mean(&format!("image_mean[{i}]"), value)?;
    }
    for (i, &value) in stds.iter().enumerate() {
        std(&format!("image_std[{i}]"), value)?;
    }
    Ok(())
}
