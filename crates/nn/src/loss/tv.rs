//! The total variation distance, outcome by outcome.

/// |p - q| / 2, and its derivative by log q: q/2 in the direction of q - p, 0 where they are equal.
pub(super) fn term(log_p: f64, log_q: f64) -> (f64, f64) {
    let (p, q) = (log_p.exp(), log_q.exp());
    let difference = q - p;
    let slope = if difference == 0.0 { 0.0 } else { 0.5 * q * difference.signum() };
    (0.5 * difference.abs(), slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_classes_in_closed_form() {
        let found = term(0.8f64.ln(), 0.3f64.ln()).0 + term(0.2f64.ln(), 0.7f64.ln()).0;
        assert!((found - 0.5).abs() < 1e-15);
        assert_eq!(term(-0.5, -0.5), (0.0, 0.0));
        assert!(term(-0.5, f64::NAN).0.is_nan());
    }
}
