//! Where the ticks of an axis go and how they are written.

/// How values become positions on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, over the range of the values.
    Fitted,
    /// Evenly, from zero where all values are positive.
    FromZero,
    /// By powers of ten; values that are not positive are left out. Six decades at most.
    Logarithmic,
}

/// The range of an axis and its ticks. On a logarithmic axis, those of the exponents.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// An axis over `values`, widened to whole steps, of which there are about `ticks`.
    pub(super) fn over(values: impl Iterator<Item = f64>, ticks: u32, scale: Scale) -> Self {
        let (mut low, mut high) = values
            .map(|value| if scale == Scale::Logarithmic { value.log10() } else { value })
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if scale == Scale::Logarithmic {
            let high = high.ceil();
            let low = low.floor().clamp(high - 6.0, high - 1.0);
            return Self { scale, low, high, step: 1.0 };
        }
        if scale == Scale::FromZero && low > 0.0 {
            low = 0.0;
        }
        if high - low <= f64::EPSILON * high.abs().max(low.abs()) {
            let around = (low.abs() * 0.1).max(0.5);
            (low, high) = (low - around, high + around);
        }
        let step = round_step((high - low) / f64::from(ticks.max(1)));
        Self { scale, low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    /// Where a value lies, 0 at the low end and 1 at the high end.
    pub(super) fn position(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Logarithmic => value.max(f64::MIN_POSITIVE).log10().max(self.low),
            Scale::Fitted | Scale::FromZero => value,
        };
        (value - self.low) / (self.high - self.low)
    }

    /// The ticks: value and what is written beside it.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let count = ((self.high - self.low) / self.step).round() as u32;
        let decimals = |step: f64| (-step.log10()).ceil().clamp(0.0, 9.0) as usize;
        (0..=count)
            .map(|tick| {
                let at = self.low + f64::from(tick) * self.step;
                if self.scale == Scale::Logarithmic {
                    let value = 10_f64.powf(at);
                    (value, grouped(value, decimals(value)))
                } else {
                    (at, grouped(at, decimals(self.step)))
                }
            })
            .collect()
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn round_step(raw: f64) -> f64 {
    let power = 10_f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= raw * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// A number with commas between thousands.
fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::new();
    if value < 0.0 && text.contains(|c: char| ('1'..='9').contains(&c)) {
        out.push('−');
    }
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], scale: Scale) -> Vec<String> {
        let axis = Axis::over(values.iter().copied(), 5, scale);
        axis.ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(
            labels(&[0.03, 2.31], Scale::FromZero),
            ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]
        );
        assert_eq!(labels(&[91.3, 97.8], Scale::Fitted), ["90", "92", "94", "96", "98"]);
        assert_eq!(
            labels(&[0.0, 4690.0], Scale::FromZero),
            ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]
        );
        assert_eq!(
            labels(&[-0.02, 0.03], Scale::Fitted),
            ["−0.02", "−0.01", "0.00", "0.01", "0.02", "0.03"]
        );
    }

    #[test]
    fn powers_of_ten_are_evenly_spaced() {
        assert_eq!(labels(&[0.03, 19.0], Scale::Logarithmic), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(&[0.0, 0.5], Scale::Logarithmic), ["0.1", "1"]);
        assert_eq!(labels(&[1e-30, 900.0], Scale::Logarithmic)[0], "0.001");
        let axis = Axis::over([0.01, 100.0].into_iter(), 5, Scale::Logarithmic);
        assert!((axis.position(1.0) - 0.5).abs() < 1e-12);
        assert_eq!((axis.position(1e-9), axis.position(-1.0)), (0.0, 0.0));
    }

    #[test]
    fn no_value_or_one_value_still_makes_an_axis() {
        for values in [&[][..], &[5.0], &[0.0, 0.0], &[f64::NAN]] {
            for scale in [Scale::Fitted, Scale::FromZero, Scale::Logarithmic] {
                let axis = Axis::over(values.iter().copied(), 5, scale);
                assert!(axis.ticks().len() >= 2, "{values:?}: {axis:?}");
                assert!(axis.low < axis.high);
            }
        }
    }

    #[test]
    fn positions_run_from_0_to_1() {
        let axis = Axis::over([0.0, 10.0].into_iter(), 5, Scale::Fitted);
        assert!((axis.position(2.5) - 0.25).abs() < 1e-12);
    }
}
