//! What several subcommands' flags have in common.

use std::ops::RangeInclusive;

/// Reads a number within a range, for clap.
pub(crate) fn number(range: RangeInclusive<f64>) -> impl Fn(&str) -> Result<f64, String> + Clone {
    move |text| {
        let value: f64 = text.parse().map_err(|error| format!("{error}"))?;
        let (least, most) = (range.start(), range.end());
        let fits = range.contains(&value);
        fits.then_some(value).ok_or_else(|| format!("must be {least} to {most}"))
    }
}
