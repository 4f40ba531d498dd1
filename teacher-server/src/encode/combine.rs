//! From the logits of an ensemble's members to one distribution, one row at a time.
//!
//! Hinton et al. (2015), arXiv 1503.02531, sections 1 and 2. With M members and their logits z_m:
//!
//! * arithmetic: `p_T = (1 / M) * sum_m softmax(z_m / T)`;
//! * geometric: `p_T = softmax(z / T)` of `z = (1 / M) * sum_m z_m`.
//!
//! Of one model both are its own `softmax(z / T)`, and of equal members they are that of one of
//! them, bit for bit.

use stillhouse_nn::softmax::log_softmax;

use super::select;
use crate::ensemble::Rule;

/// The mean of the members' logits, in f64: neither the sum nor the mean of f32 logits overflows.
pub(super) fn mean_logits<'m>(
    members: impl ExactSizeIterator<Item = &'m [f32]>,
    out: &mut Vec<f64>,
) {
    let count = members.len() as f64;
    out.clear();
    for (number, member) in members.enumerate() {
        if number == 0 {
            out.resize(member.len(), 0.0);
        }
        out.iter_mut().zip(member).for_each(|(sum, &z)| *sum += f64::from(z));
    }
    out.iter_mut().for_each(|sum| *sum /= count);
}

/// Softens one row after another, with room that the rows share.
pub(super) struct Combiner {
    rule: Rule,
    temperature: f32,
    log_probabilities: Vec<f64>,
    /// Under [`Rule::Geometric`], the mean logits; under [`Rule::Arithmetic`], a member's
    /// log-probabilities.
    values: Vec<f64>,
    /// Under [`Rule::Arithmetic`], the sum of the members' probabilities over the largest of them.
    sums: Vec<f64>,
}

/// A row's distribution.
pub(super) struct Softened<'a> {
    /// log p_T of every class, at most 0.
    pub(super) log_probabilities: &'a [f64],
    ranking: Ranking<'a>,
}

/// What orders the classes. Logits where there are some: two that differ may have the same
/// log-probability.
enum Ranking<'a> {
    Logits(&'a [f32]),
    MeanLogits(&'a [f64]),
    LogProbabilities,
}

impl Softened<'_> {
    /// As [`select::top_k`] has them.
    pub(super) fn top_k(&self, k: usize) -> Vec<u32> {
        match self.ranking {
            Ranking::Logits(logits) => select::top_k(logits, f32::total_cmp, k),
            Ranking::MeanLogits(logits) => select::top_k(logits, f64::total_cmp, k),
            Ranking::LogProbabilities => select::top_k(self.log_probabilities, f64::total_cmp, k),
        }
    }
}

impl Combiner {
    pub(super) fn new(rule: Rule, temperature: f32) -> Self {
        let (log_probabilities, values, sums) = (Vec::new(), Vec::new(), Vec::new());
        Self { rule, temperature, log_probabilities, values, sums }
    }

    /// log p_T of a row, of the logits that each member gives it: finite, and of one length.
    pub(super) fn soften<'a, 'm: 'a>(
        &'a mut self,
        mut members: impl ExactSizeIterator<Item = &'m [f32]>,
    ) -> Softened<'a> {
        let (rule, temperature, count) = (self.rule, self.temperature, members.len());
        let out = &mut self.log_probabilities;
        let ranking = match rule {
            Rule::Geometric if count > 1 => {
                mean_logits(members, &mut self.values);
                log_softmax(&self.values, temperature, out);
                Ranking::MeanLogits(&self.values)
            }
            _ => {
                let first = members.next().unwrap_or_default();
                log_softmax(first, temperature, out);
                if count > 1 {
                    self.sums.clear();
                    self.sums.resize(out.len(), 1.0);
                    for member in members {
                        log_softmax(member, temperature, &mut self.values);
                        add(&self.values, out, &mut self.sums);
                    }
                    // The sums are at most `count`: no logarithm is above 0.
                    let all = out.iter_mut().zip(&self.sums);
                    all.for_each(|(log, sum)| *log += (sum / count as f64).ln());
                    Ranking::LogProbabilities
                } else {
                    Ranking::Logits(first)
                }
            }
        };
        Softened { log_probabilities: &self.log_probabilities, ranking }
    }
}

/// Adds a member's probabilities to those of the members before it: each of these is
/// `largest.exp() * sum`, so that none underflows or overflows.
fn add(member: &[f64], largest: &mut [f64], sums: &mut [f64]) {
    for ((&x, largest), sum) in member.iter().zip(largest).zip(sums) {
        if x > *largest {
            *sum = *sum * (*largest - x).exp() + 1.0;
            *largest = x;
        } else if x == *largest {
            *sum += 1.0;
        } else {
            *sum += (x - *largest).exp();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Rule; 2] = Rule::ALL;

    fn softened(rule: Rule, temperature: f32, members: &[&[f32]]) -> Vec<f64> {
        let mut combiner = Combiner::new(rule, temperature);
        combiner.soften(members.iter().copied()).log_probabilities.to_vec()
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-14 * expected.abs().max(1.0), "{found} {expected}");
    }

    /// log of the logistic function.
    fn log_sigmoid(x: f64) -> f64 {
        if x < 0.0 { x - x.exp().ln_1p() } else { -(-x).exp().ln_1p() }
    }

    #[test]
    fn two_classes_follow_the_logistic_function() {
        for (a, b) in [(0.0_f32, 0.0_f32), (3.0, -1.0), (-7.5, 2.0), (40.0, -40.0), (600.0, 500.0)]
        {
            for temperature in [0.5_f32, 1.0, 4.0, 1e6] {
                let members: [&[f32]; 2] = [&[a, 0.0], &[b, 0.0]];
                let (a, b, t) = (f64::from(a), f64::from(b), f64::from(temperature));
                let found = softened(Rule::Geometric, temperature, &members);
                close(found[0], log_sigmoid((a + b) / (2.0 * t)));
                close(found[1], log_sigmoid(-(a + b) / (2.0 * t)));

                // log of the mean, by the larger of the two.
                let mean = |x: f64, y: f64| {
                    let (x, y) = (log_sigmoid(x), log_sigmoid(y));
                    x.max(y) + (0.5 + 0.5 * (-(x - y).abs()).exp()).ln()
                };
                let found = softened(Rule::Arithmetic, temperature, &members);
                close(found[0], mean(a / t, b / t));
                close(found[1], mean(-a / t, -b / t));
            }
        }
    }

    /// p = exp(z / T) / sum(exp(z / T)), as it is written, in f64: for logits that it is exact for.
    #[test]
    fn more_members_and_classes_are_as_the_definition_has_them() {
        let members: [&[f32]; 3] =
            [&[1.0, -2.0, 0.5, 3.0], &[0.0, 0.25, -4.0, 3.5], &[-1.5, 2.0, 2.0, -0.75]];
        let softmax = |logits: &[f64], t: f64| -> Vec<f64> {
            let mass: f64 = logits.iter().map(|z| (z / t).exp()).sum();
            logits.iter().map(|z| (z / t).exp() / mass).collect()
        };
        for temperature in [0.25_f32, 1.0, 2.5, 20.0] {
            let t = f64::from(temperature);
            let (mut arithmetic, mut mean) = (vec![0.0; 4], vec![0.0; 4]);
            for member in members {
                let member: Vec<f64> = member.iter().copied().map(f64::from).collect();
                for (class, p) in softmax(&member, t).into_iter().enumerate() {
                    arithmetic[class] += p / 3.0;
                    mean[class] += member[class] / 3.0;
                }
            }
            for (rule, expected) in
                [(Rule::Arithmetic, arithmetic), (Rule::Geometric, softmax(&mean, t))]
            {
                let found = softened(rule, temperature, &members);
                found.into_iter().zip(expected).for_each(|(log, p)| close(log.exp(), p));
            }
        }
    }

    #[test]
    fn one_model_and_equal_models_are_that_model_bit_for_bit() {
        let model: &[f32] = &[1.1, -2.3, 0.7, 30.0, -1e4];
        for temperature in [1e-3, 0.7, 3.0, 1e9] {
            let mut own = Vec::new();
            log_softmax(model, temperature, &mut own);
            for rule in BOTH {
                for count in [1, 2, 3, 7, 64] {
                    let found = softened(rule, temperature, &vec![model; count]);
                    assert_eq!(found, own, "{rule:?} of {count} at {temperature}");
                }
            }
        }
    }

    #[test]
    fn extreme_logits_and_temperatures_stay_defined() {
        let members: [&[f32]; 3] =
            [&[f32::MAX, f32::MIN, 0.0], &[1e4, -1e4, 0.0], &[-1e4, -1e4, f32::MAX]];
        for rule in BOTH {
            for temperature in [f32::MIN_POSITIVE, 1e-45, 1.0, 1e4, f32::MAX] {
                let found = softened(rule, temperature, &members);
                assert!(found.iter().all(|x| x.is_finite() && *x <= 0.0), "{rule:?} {found:?}");
                let mass: f64 = found.iter().map(|x| x.exp()).sum();
                assert!((mass - 1.0).abs() < 1e-12, "{rule:?} {temperature} {mass}");
            }
        }
        // As T falls, the arithmetic mean counts the members' first choices; the geometric mean has
        // one first choice, that of the mean logits.
        let votes: [&[f32]; 3] = [&[2.0, 1.0, 0.0], &[2.0, 1.9, 0.0], &[0.0, 9.0, 1.0]];
        let found = softened(Rule::Arithmetic, 1e-6, &votes);
        close(found[0], (2.0_f64 / 3.0).ln());
        close(found[1], (1.0_f64 / 3.0).ln());
        assert_eq!(softened(Rule::Geometric, 1e-6, &votes)[1], 0.0);
        // As T grows, both become uniform.
        for rule in BOTH {
            let found = softened(rule, 1e9, &votes);
            assert!(found.iter().all(|x| (x.exp() - 1.0 / 3.0).abs() < 1e-8), "{rule:?}");
        }
    }

    #[test]
    fn each_rule_orders_the_classes_by_its_own_distribution() {
        // Two mild votes for class 0, one strong one for class 1.
        let members: [&[f32]; 3] = [&[3.0, 0.0, -9.0], &[3.0, 0.0, -9.0], &[0.0, 20.0, -9.0]];
        let top = |rule, temperature, members: &[&[f32]]| {
            let mut combiner = Combiner::new(rule, temperature);
            combiner.soften(members.iter().copied()).top_k(1)[0]
        };
        assert_eq!(top(Rule::Arithmetic, 1.0, &members), 0);
        assert_eq!(top(Rule::Arithmetic, 100.0, &members), 1, "the order depends on T");
        assert_eq!(top(Rule::Geometric, 1.0, &members), 1);
        // Logits that differ where their log-probabilities do not.
        let close: [&[f32]; 2] = [&[0.0, 1e-30], &[0.0, 0.0]];
        assert_eq!(top(Rule::Geometric, 1e30, &close), 1);
        assert_eq!(top(Rule::Arithmetic, 1e30, &close[..1]), 1);
        assert_eq!(top(Rule::Arithmetic, 1e30, &close), 0, "equal probabilities in order of id");
    }
}
