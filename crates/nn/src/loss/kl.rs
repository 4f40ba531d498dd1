//! KL(p || q) and the cross-entropy of p and q, outcome by outcome.

/// p (log p - log q), and -p as its derivative by log q; p = 0 contributes 0.
pub(super) fn forward(log_p: f64, log_q: f64) -> (f64, f64) {
    let p = log_p.exp();
    if p == 0.0 { (0.0, 0.0) } else { (p * (log_p - log_q), -p) }
}

/// -p log q, with the same derivative.
pub(super) fn cross_entropy(log_p: f64, log_q: f64) -> (f64, f64) {
    let p = log_p.exp();
    if p == 0.0 { (0.0, 0.0) } else { (-p * log_q, -p) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_classes_in_closed_form() {
        let (p, q) = (0.8f64, 0.3f64);
        let sum = |f: fn(f64, f64) -> (f64, f64)| {
            f(p.ln(), q.ln()).0 + f((1.0 - p).ln(), (1.0 - q).ln()).0
        };
        let kl = 0.8 * (8f64 / 3.0).ln() + 0.2 * (2f64 / 7.0).ln();
        let entropy = -(0.8 * 0.8f64.ln() + 0.2 * 0.2f64.ln());
        assert!((sum(forward) - kl).abs() < 1e-15);
        assert!((sum(cross_entropy) - (kl + entropy)).abs() < 1e-15);
    }

    #[test]
    fn nothing_for_no_mass() {
        assert_eq!(forward(f64::NEG_INFINITY, -3.0), (0.0, 0.0));
        assert_eq!(cross_entropy(-1e4, -3.0), (0.0, 0.0));
        assert_eq!(forward(0.0, -2e4), (2e4, -1.0));
    }
}
