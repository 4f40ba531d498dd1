//! KL(q || p), outcome by outcome.

/// ln 2^-149, of the smallest f32 above 0. A teacher's probability that is exactly 0 became so by
/// rounding, so all that is known of its logarithm is that it lies below; this bound is the mildest
/// reading. Dropping the outcome instead would make putting mass on it free.
pub(super) const LOG_OF_ZERO: f64 = -149.0 * std::f64::consts::LN_2;

/// q (log q - log p), and the same as its derivative by log q: the derivative of q itself sums to
/// a constant. q = 0 contributes 0.
pub(super) fn term(log_p: f64, log_q: f64) -> (f64, f64) {
    let q = log_q.exp();
    let log_p = if log_p == f64::NEG_INFINITY { LOG_OF_ZERO } else { log_p };
    let term = if q == 0.0 { 0.0 } else { q * (log_q - log_p) };
    (term, term)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_classes_in_closed_form() {
        let (p, q) = (0.8f64, 0.3f64);
        let found = term(p.ln(), q.ln()).0 + term((1.0 - p).ln(), (1.0 - q).ln()).0;
        let expected = 0.3 * (3f64 / 8.0).ln() + 0.7 * (7f64 / 2.0).ln();
        assert!((found - expected).abs() < 1e-15);
    }

    #[test]
    fn mass_where_the_teacher_has_none_is_dear_but_finite() {
        assert_eq!(term(f64::NEG_INFINITY, 0.0).0, -LOG_OF_ZERO);
        assert!((LOG_OF_ZERO - f64::from(f32::from_bits(1)).ln()).abs() < 1e-12);
        assert_eq!(term(-1e4, 0.0).0, 1e4);
        assert_eq!(term(f64::NEG_INFINITY, -1e4).0, 0.0);
    }
}
