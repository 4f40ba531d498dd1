//! Rotary position embeddings: `rope_parameters`, or the `rope_theta` and `rope_scaling` of older
//! files, to frequencies.

use std::f64::consts::TAU;

use super::reader::Reader;
use super::spec::Rope;
use crate::error::ModelError;

/// What the rotation of one kind of layer is read from.
pub(super) struct Source<'a> {
    /// Where `rope_theta` stands.
    pub(super) theta: Reader<'a>,
    /// Key of the base.
    pub(super) theta_key: &'a str,
    /// Where type and factors stand; none: plain.
    pub(super) scaling: Option<Reader<'a>>,
    pub(super) default_theta: f64,
    pub(super) head_dim: usize,
    pub(super) max_positions: usize,
}

impl Source<'_> {
    /// # Errors
    ///
    /// [`ModelError::Config`] for a type that is not supported, and a value out of range.
    pub(super) fn read(&self) -> Result<Rope, ModelError> {
        let base = self.theta.positive(self.theta_key)?.unwrap_or(self.default_theta);
        if base <= 1.0 {
            return Err(self.theta.fault(self.theta_key, "above 1"));
        }
        let half = self.head_dim / 2;
        // In f32, step by step, as transformers has them.
        let plain: Vec<f32> = (0..half)
            .map(|i| {
                let exponent = (2 * i) as f32 / self.head_dim as f32;
                1.0 / f64::from(base as f32).powf(f64::from(exponent)) as f32
            })
            .collect();
        let Some(scaling) = &self.scaling else {
            return Ok(Rope { inverse_frequencies: plain, scale: 1.0 });
        };
        if let Some(part) = scaling.optional_number("partial_rotary_factor")?
            && part != 1.0
        {
            return Err(scaling.fault("partial_rotary_factor", "1: the whole head is rotated"));
        }
        let key = if scaling.has("rope_type") { "rope_type" } else { "type" };
        match scaling.text(key)?.unwrap_or("default") {
            "default" => Ok(Rope { inverse_frequencies: plain, scale: 1.0 }),
            "linear" => {
                let factor = required(scaling, "factor")? as f32;
                let inverse_frequencies = plain.iter().map(|f| f / factor).collect();
                Ok(Rope { inverse_frequencies, scale: 1.0 })
            }
            "llama3" => llama3(scaling, &plain),
            "yarn" => self.yarn(scaling, base, &plain),
            _ => Err(scaling.fault(key, "default, linear, llama3 or yarn")),
        }
    }

    /// YaRN (Peng et al., 2023): high frequencies stay, low ones are divided by the factor, with a
    /// ramp between them; scores grow by the attention factor.
    fn yarn(&self, scaling: &Reader<'_>, base: f64, plain: &[f32]) -> Result<Rope, ModelError> {
        let original = required(scaling, "original_max_position_embeddings")?;
        let factor = match scaling.positive("factor")? {
            Some(factor) => factor,
            None => self.max_positions as f64 / original,
        };
        let magnitude = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let scale = match scaling.positive("attention_factor")? {
            Some(scale) => scale,
            None => match (scaling.positive("mscale")?, scaling.positive("mscale_all_dim")?) {
                (Some(own), Some(all)) => magnitude(own) / magnitude(all),
                _ => magnitude(1.0),
            },
        };
        let dim = self.head_dim as f64;
        let turning =
            |rotations: f64| dim * (original / (rotations * TAU)).ln() / (2.0 * base.ln());
        let fast = turning(scaling.positive("beta_fast")?.unwrap_or(32.0));
        let slow = turning(scaling.positive("beta_slow")?.unwrap_or(1.0));
        let (fast, slow) = if scaling.flag("truncate", true)? {
            (fast.floor(), slow.ceil())
        } else {
            (fast, slow)
        };
        let (low, mut high) = (fast.max(0.0), slow.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
        let inverse_frequencies = plain.iter().enumerate().map(|(i, &f)| {
            let kept = 1.0 - ramp(i);
            f / factor as f32 * (1.0 - kept) + f * kept
        });
        Ok(Rope { inverse_frequencies: inverse_frequencies.collect(), scale: scale as f32 })
    }
}

/// Llama 3.1: wavelengths beyond the original context are stretched by the factor, those well within
/// it stay, with a ramp between them.
fn llama3(scaling: &Reader<'_>, plain: &[f32]) -> Result<Rope, ModelError> {
    let factor = required(scaling, "factor")?;
    let low = required(scaling, "low_freq_factor")?;
    let high = required(scaling, "high_freq_factor")?;
    let context = required(scaling, "original_max_position_embeddings")?;
    if high <= low {
        return Err(scaling.fault("high_freq_factor", "above low_freq_factor"));
    }
    let stretch = |f: &f32| {
        let f = f64::from(*f);
        let wavelength = TAU / f;
        let stretched = if wavelength < context / high {
            f
        } else if wavelength > context / low {
            f / factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        };
        stretched as f32
    };
    Ok(Rope { inverse_frequencies: plain.iter().map(stretch).collect(), scale: 1.0 })
}

fn required(reader: &Reader<'_>, key: &str) -> Result<f64, ModelError> {
    reader.positive(key)?.ok_or_else(|| reader.fault(key, "a finite number above 0"))
}
