//! The generalised Jensen-Shannon divergence, outcome by outcome.

use super::outcomes::log_add_exp;

/// beta p log(p / m) + (1 - beta) q log(q / m) with m = beta p + (1 - beta) q, and its derivative
/// by log q, (1 - beta) q log(q / m): what m contributes cancels. p = 0 and q = 0 contribute 0.
pub(super) fn term(beta: f64, log_p: f64, log_q: f64) -> (f64, f64) {
    let log_m = log_add_exp(beta.ln() + log_p, (1.0 - beta).ln() + log_q);
    let weighted = |weight: f64, log: f64| {
        let mass = weight * log.exp();
        if mass == 0.0 { 0.0 } else { mass * (log - log_m) }
    };
    let slope = weighted(1.0 - beta, log_q);
    (weighted(beta, log_p) + slope, slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_classes_in_closed_form() {
        let (p, q, beta) = ([0.8f64, 0.2], [0.3f64, 0.7], 0.25);
        let found: f64 = (0..2).map(|i| term(beta, p[i].ln(), q[i].ln()).0).sum();
        let m = [0.25 * 0.8 + 0.75 * 0.3, 0.25 * 0.2 + 0.75 * 0.7];
        let kl = |a: [f64; 2]| (0..2).map(|i| a[i] * (a[i] / m[i]).ln()).sum::<f64>();
        assert!((found - (0.25 * kl(p) + 0.75 * kl(q))).abs() < 1e-15);
    }

    /// Disjoint distributions are beta log(1/beta) + (1 - beta) log(1/(1 - beta)) apart.
    #[test]
    fn disjoint_support_is_the_maximum() {
        let (one, none) = (0.0, f64::NEG_INFINITY);
        let found = term(0.5, one, none).0 + term(0.5, none, one).0;
        assert!((found - 2f64.ln()).abs() < 1e-15, "{found}");
    }
}
