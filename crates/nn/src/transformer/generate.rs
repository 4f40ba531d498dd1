//! Continuations of prompts, token by token, with keys and values kept.

use super::TokenBatch;
use super::attention::LayerCache;
use super::body::Tokens;
use super::pass::Pass;
use super::text_model::{TextModel, checked, rows};
use crate::error::ModelError;
use crate::kernel::rope::Layout;
use crate::rng::Philox;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by, finite; 0: the most probable token, of equal ones the first.
    pub temperature: f64,
    /// Only the most probable tokens that together have this mass, above 0 and at most 1 (Holtzman et
    /// al., 2020, "The Curious Case of Neural Text Degeneration"). 1: all.
    pub top_p: f64,
    /// Of the draws. A prompt's continuation depends on it, on the prompt's number and on the prompt,
    /// and not on what else is continued at the same time.
    pub seed: u64,
}

impl Sampling {
    /// The most probable token at every step.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, seed: 0 };

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub fn validate(&self) -> Result<(), ModelError> {
        let check = |field: &str, value: f64, fits: bool, expected: &str| match fits {
            true => Ok(()),
            false => Err(ModelError::Config {
                field: field.to_owned(),
                value: value.to_string(),
                expected: expected.to_owned(),
            }),
        };
        let (t, p) = (self.temperature, self.top_p);
        check("temperature", t, t.is_finite() && t >= 0.0, "a finite number, 0 or more")?;
        check("top_p", p, p > 0.0 && p <= 1.0, "above 0, at most 1")
    }
}

/// Streams of the seed that draws are made from begin here; each prompt has one.
const STREAM: u64 = 7 << 48;

impl TextModel {
    /// Continues every prompt by up to `most` tokens, until `end`, which is the last token then, or the
    /// model's longest sequence. Returns the new tokens of each prompt.
    ///
    /// # Errors
    ///
    /// [`ModelError::Size`] or [`ModelError::Token`] for prompts that do not fit the model, or a model
    /// that is none of language; [`ModelError::Config`] for a sampling out of range;
    /// [`ModelError::NonFiniteLogits`] where the model gives no answer.
    pub fn generate(
        &self,
        prompts: &[&[u32]],
        most: usize,
        end: Option<u32>,
        sampling: &Sampling,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        sampling.validate()?;
        if !self.config().is_language_model() {
            let expected = "a language model".to_owned();
            return Err(ModelError::Size { field: "prompts", found: prompts.len(), expected });
        }
        let lengths: Vec<u32> =
            prompts.iter().map(|p| u32::try_from(p.len()).unwrap_or(u32::MAX)).collect();
        let ids = prompts.concat();
        checked(self.config(), &TokenBatch { ids: &ids, lengths: &lengths })?;

        let longest = self.config().max_length();
        let mut out = vec![Vec::new(); prompts.len()];
        let mut draws: Vec<Philox> =
            (0..).take(prompts.len()).map(|i| Philox::new(sampling.seed, STREAM + i)).collect();
        // Prompts that are not at their end, by number.
        let room = |prompt: usize| most.min(longest - prompts[prompt].len());
        let mut open: Vec<usize> = (0..prompts.len()).filter(|&at| room(at) > 0).collect();
        let mut caches = vec![LayerCache::default(); self.body().layers()];
        let mut next: Vec<u32> = open.iter().flat_map(|&at| prompts[at]).copied().collect();
        let mut layout = Layout::whole(open.iter().map(|&at| prompts[at].len()).collect());
        while !open.is_empty() {
            let tokens = Tokens { ids: &next, layout: layout.clone() };
            let (x, _) = self.body().forward(&tokens, Some(&mut caches), &Pass::INFERENCE)?;
            let ends = layout.lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end - 1)
            });
            let last = rows(&x, self.config().hidden_size(), ends);
            let logits = self.packed_head().logits(&self.body().top(last, &Pass::INFERENCE)?.0)?;
            next.clear();
            let mut stay = Vec::with_capacity(open.len());
            for (&prompt, logits) in open.iter().zip(logits.chunks_exact(self.classes())) {
                let id = choose(logits, sampling, &mut draws[prompt])
                    .ok_or(ModelError::NonFiniteLogits { row: prompt })?;
                out[prompt].push(id);
                let goes_on = Some(id) != end && out[prompt].len() < room(prompt);
                stay.push(goes_on);
                if goes_on {
                    next.push(id);
                }
            }
            let mut position = layout.past.iter().zip(&layout.lengths).map(|(a, b)| a + b);
            let past: Vec<usize> =
                position.by_ref().zip(&stay).filter_map(|(at, stay)| stay.then_some(at)).collect();
            caches.iter_mut().for_each(|cache| cache.keep(&stay));
            let mut staying = stay.iter();
            open.retain(|_| staying.next() == Some(&true));
            layout = Layout { lengths: vec![1; open.len()], past };
        }
        Ok(out)
    }
}

/// The next token; none where a logit is not finite.
fn choose(logits: &[f32], sampling: &Sampling, draws: &mut Philox) -> Option<u32> {
    if logits.iter().any(|z| !z.is_finite()) {
        return None;
    }
    let (mut best, mut max) = (0, f32::NEG_INFINITY);
    for (id, &z) in logits.iter().enumerate() {
        if z > max {
            (best, max) = (id, z);
        }
    }
    // At a temperature below what f64 can divide by, only the best is left.
    let inverse = sampling.temperature.recip();
    if !inverse.is_finite() {
        return Some(best as u32);
    }
    let mut masses: Vec<(u32, f64)> = (0..)
        .zip(logits)
        .map(|(id, &z)| (id, ((f64::from(z) - f64::from(max)) * inverse).exp()))
        .collect();
    let mut total: f64 = masses.iter().map(|(_, mass)| mass).sum();
    if sampling.top_p < 1.0 {
        masses.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let enough = sampling.top_p * total;
        let mut kept = 0.0;
        let count = masses.iter().take_while(|(_, mass)| {
            let more = kept < enough;
            kept += mass;
            more
        });
        let count = count.count();
        masses.truncate(count);
        total = masses.iter().map(|(_, mass)| mass).sum();
    }
    let mut at = draws.next_f64() * total;
    for &(id, mass) in &masses {
        if at < mass {
            return Some(id);
        }
        at -= mass;
    }
    // Rounding: the last one that has any mass.
    masses.iter().rev().find(|(_, mass)| *mass > 0.0).map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(logits: &[f32], temperature: f64, top_p: f64) -> Vec<f64> {
        let sampling = Sampling { temperature, top_p, seed: 0 };
        let mut draws = Philox::new(3, 0);
        let mut counts = vec![0.0; logits.len()];
        let n = 40_000;
        for _ in 0..n {
            counts[choose(logits, &sampling, &mut draws).unwrap() as usize] += 1.0 / f64::from(n);
        }
        counts
    }

    #[test]
    fn draws_follow_the_tempered_distribution() {
        // Probabilities 1/2, 1/4, 1/8, 1/8.
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        for (found, expected) in counts(&logits, 1.0, 1.0).iter().zip([0.5, 0.25, 0.125, 0.125]) {
            assert!((found - expected).abs() < 0.01, "{found} {expected}");
        }
        // At T = 1/2 their squares, over 11/32.
        for (found, expected) in
            counts(&logits, 0.5, 1.0).iter().zip([8.0 / 11.0, 2.0 / 11.0, 0.5 / 11.0, 0.5 / 11.0])
        {
            assert!((found - expected).abs() < 0.01, "{found} {expected}");
        }
        // The first two have 0.75: they are the fewest with 0.7, and alone with it.
        for top_p in [0.7, 0.75] {
            let found = counts(&logits, 1.0, top_p);
            assert!((found[0] - 2.0 / 3.0).abs() < 0.01 && found[2] + found[3] == 0.0, "{found:?}");
        }
        assert_eq!(
            counts(&logits, 1.0, 1e-9),
            [1.0, 0.0, 0.0, 0.0].map(|x: f64| x * counts(&logits, 0.0, 1.0)[0])
        );
    }

    #[test]
    fn extremes() {
        let mut draws = Philox::new(0, 0);
        let mut of = |logits: &[f32], temperature| {
            choose(logits, &Sampling { temperature, top_p: 1.0, seed: 0 }, &mut draws)
        };
        assert_eq!(of(&[1.0, 2.0, 2.0], 0.0), Some(1));
        assert_eq!(of(&[1.0, 2.0, 2.0], 1e-320), Some(1));
        assert_eq!(of(&[-1e30, 1e30], 1.0), Some(1));
        assert_eq!(of(&[0.0, f32::NAN], 1.0), None);
        assert_eq!(of(&[0.0, f32::INFINITY], 1.0), None);
        for (sampling, expected) in [
            (Sampling { temperature: -1.0, ..Sampling::GREEDY }, "temperature is -1; expected"),
            (Sampling { temperature: f64::NAN, ..Sampling::GREEDY }, "temperature is NaN"),
            (Sampling { top_p: 0.0, ..Sampling::GREEDY }, "top_p is 0; expected above 0"),
            (Sampling { top_p: 1.5, ..Sampling::GREEDY }, "top_p is 1.5"),
        ] {
            let error = sampling.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
