//! Steps on what the student itself writes.

use std::ops::Range;

use stillhouse_nn::{ModelError, Philox, TextModel};

use super::{
    corpus::Corpus,
    packing::{Packed, Sequence},
    recipe::{OnPolicySection, TextRecipe},
};
use crate::random;

/// Whether a step is one of these. The same for every run of a seed, wherever it goes on.
pub(super) fn is_on_policy(recipe: &TextRecipe, step: u64) -> bool {
    let drawn = || Philox::new(recipe.seed, random::on_policy(step)).next_f64();
    recipe.on_policy.as_ref().is_some_and(|section| drawn() < section.fraction)
}

/// The tokens of a sequence that are its prompt: those before the first that is learnt, or the first few;
/// below `most`. `begins` says whether documents begin with a token that is never learnt.
fn prompt(
    corpus: &Corpus,
    sequence: Sequence,
    section: &OnPolicySection,
    (begins, most): (bool, usize),
) -> Range<usize> {
    let tokens = sequence.start..sequence.start + sequence.length;
    let own = tokens.clone().take_while(|&at| !corpus.learn[at]).count();
    // Where all is learnt, a beginning that is not (`data.begin`) is no prompt.
    let length = if own <= usize::from(begins) { section.prompt_tokens } else { own };
    // There must be room for a token behind it.
    tokens.start..tokens.start + length.min(sequence.length).min(most - 1)
}

/// Lets the student continue the prompts of sequences. Every new token is labelled, at the position
/// before it; none is a hard label.
pub(super) fn sample(
    student: &TextModel,
    recipe: &TextRecipe,
    section: &OnPolicySection,
    (corpus, sequences): (&Corpus, &[Sequence]),
    (chosen, end): (&[u32], Option<u32>),
    (step, part): (u64, usize),
) -> Result<Packed, ModelError> {
    let kind = (recipe.data.begin.is_some(), student.config().max_length().max(2));
    let prompts: Vec<&[u32]> = chosen
        .iter()
        .map(|&at| &corpus.ids[prompt(corpus, sequences[at as usize], section, kind)])
        .collect();
    // Each part of a step has a draw of the step's stream: the first has decided what kind of step it
    // is.
    let mut draws = Philox::new(recipe.seed, random::on_policy(step));
    draws.seek(2 + 2 * part as u64);
    let sampling = section.sampling(draws.next_u64());
    let written = student.generate(&prompts, section.max_new_tokens, end, &sampling)?;
    let mut packed = Packed::default();
    let longest = recipe.data.sequence_length;
    for (prompt, new) in prompts.iter().zip(written) {
        let first = packed.ids.len();
        // The last token is only ever predicted, and a sequence is no longer than others.
        let all: Vec<u32> = prompt.iter().copied().chain(new).take(longest + 1).collect();
        let length = all.len() - 1;
        packed.ids.extend_from_slice(&all[..length]);
        packed.lengths.push(length as u32);
        packed.labelled.extend(first + prompt.len() - 1..first + length);
    }
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_what_is_not_learnt_or_the_beginning() {
        let mut corpus = Corpus::new();
        corpus.push(&[1, 2, 3, 4, 5, 6], &[false, false, false, true, true, true]);
        corpus.push(&[1, 2, 3, 4, 5, 6], &[false, true, true, true, true, true]);
        let section = OnPolicySection {
            fraction: 0.5,
            max_new_tokens: 3,
            prompt_tokens: 2,
            temperature: 1.0,
            top_p: 1.0,
        };
        let of = |start, length| prompt(&corpus, Sequence { start, length }, &section, (true, 9));
        assert_eq!(of(0, 5), 0..3);
        assert_eq!(of(6, 5), 6..8);
        assert_eq!(of(6, 1), 6..7);
        let of = |kind| prompt(&corpus, Sequence { start: 6, length: 5 }, &section, kind);
        assert_eq!(of((false, 9)), 6..7);
        assert_eq!(of((true, 2)), 6..7);
    }
}
