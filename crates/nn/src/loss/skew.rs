//! The skew KL divergence, outcome by outcome.

use super::outcomes::log_add_exp;

/// p log(p / m) with m = lambda p + (1 - lambda) q, and -(1 - lambda) p q / m as its derivative by
/// log q; p = 0 contributes 0.
pub(super) fn term(lambda: f64, log_p: f64, log_q: f64) -> (f64, f64) {
    let p = log_p.exp();
    if p == 0.0 {
        return (0.0, 0.0);
    }
    let log_student = (1.0 - lambda).ln() + log_q;
    let log_m = log_add_exp(lambda.ln() + log_p, log_student);
    (p * (log_p - log_m), -p * (log_student - log_m).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::kl;

    #[test]
    fn two_classes_in_closed_form() {
        let (p, q, lambda) = ([0.8f64, 0.2], [0.3f64, 0.7], 0.1);
        let found: f64 = (0..2).map(|i| term(lambda, p[i].ln(), q[i].ln()).0).sum();
        let m = [0.1 * 0.8 + 0.9 * 0.3, 0.1 * 0.2 + 0.9 * 0.7];
        let expected: f64 = (0..2).map(|i| p[i] * (p[i] / m[i]).ln()).sum();
        assert!((found - expected).abs() < 1e-15);
    }

    #[test]
    fn without_skew_it_is_kl() {
        assert_eq!(term(0.0, -1.5, -0.5), kl::forward(-1.5, -0.5));
    }

    /// However wrong the student is, it pays at most log(1 / lambda).
    #[test]
    fn is_bounded() {
        assert!((term(0.1, 0.0, -1e4).0 - 10f64.ln()).abs() < 1e-15);
    }
}
