//! The element types that the differentiable ops are written for.

use candle_core::WithDType;

/// f32, which models train in, or f64, which gradients are checked in.
pub(crate) trait Real: WithDType + Default + std::ops::Neg<Output = Self> {
    fn sqrt(self) -> Self;
    fn is_finite(self) -> bool;
    /// Itself, but 0 where it is subnormal: processors take some hundred cycles for each of those.
    fn without_subnormals(self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }

    #[inline(always)]
    fn without_subnormals(self) -> Self {
        // NaN stays.
        if self.abs() < f32::MIN_POSITIVE { 0.0 } else { self }
    }
}

impl Real for f64 {
    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }

    #[inline(always)]
    fn without_subnormals(self) -> Self {
        if self.abs() < f64::MIN_POSITIVE { 0.0 } else { self }
    }
}
