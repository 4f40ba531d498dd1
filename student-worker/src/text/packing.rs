//! Sequences of tokens, and which of them make a step.
//!
//! A document becomes one sequence, or several where it is longer: every token but the first is the
//! target of one position. Sequences are shuffled anew in every epoch, by the seed and the epoch's
//! number alone, and taken in that order as long as they fit into the token budget of a step.

use std::ops::Range;

use stillhouse_nn::{Philox, TokenBatch};
use stillhouse_proto::v1::Sequences as WireSequences;

use super::corpus::Corpus;
use crate::random;

/// Where a sequence's tokens stand in the corpus: positions `start .. start + length` are read, and the
/// token behind each of them is its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// First token.
    pub start: usize,
    /// Tokens that are read, at least 1.
    pub length: usize,
}

/// Cuts the documents of a corpus into sequences of at most `longest` tokens. Those without a target to
/// learn are left out. Documents that are classified are sequences as they are.
pub fn sequences(corpus: &Corpus, longest: usize) -> Vec<Sequence> {
    if !corpus.classes.is_empty() {
        let whole = |document: Range<usize>| Sequence {
            start: document.start,
            length: document.end - document.start,
        };
        return corpus.documents().map(whole).collect();
    }
    let cut = |document: Range<usize>| {
        let last = document.end - 1;
        (document.start..last)
            .step_by(longest)
            .map(move |start| Sequence { start, length: longest.min(last - start) })
    };
    let taught = |sequence: &Sequence| {
        let targets = sequence.start + 1..=sequence.start + sequence.length;
        corpus.learn[targets].iter().any(|learn| *learn)
    };
    let documents = corpus.documents().filter(|document| !document.is_empty());
    documents.flat_map(cut).filter(taught).collect()
}

/// The sequences of every step of a run.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    /// Tokens of a step.
    budget: usize,
    /// Only sequences at places of an epoch's order that are `shard[0]` modulo `shard[1]`.
    shard: [u32; 2],
    /// First step of each epoch that has been looked at, and of the one after the last of them.
    starts: Vec<u64>,
    /// The epoch at hand: its number, its order, and the places of each step in it.
    current: Option<(usize, Vec<u32>, Vec<Range<usize>>)>,
}

impl Order {
    /// Of sequences of these lengths, none longer than the budget, and at least one in the shard.
    pub fn new(seed: u64, lengths: Vec<usize>, budget: usize, shard: Option<[u32; 2]>) -> Self {
        let shard = shard.unwrap_or([0, 1]);
        Self { seed, lengths, budget, shard, starts: vec![0], current: None }
    }

    /// Number of sequences, in all shards.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether the shard has no sequence.
    pub fn is_empty(&self) -> bool {
        self.lengths.len() <= self.shard[0] as usize
    }

    /// The epoch that a step belongs to, from 0, and the step's sequences. Free within an epoch; where
    /// a new one is entered, one shuffle for each epoch that has not been looked at yet.
    pub fn step(&mut self, step: u64) -> (u64, &[u32]) {
        while self.starts.last().is_some_and(|&next| next <= step) {
            self.enter(self.starts.len() - 1);
        }
        let epoch = self.starts.partition_point(|&start| start <= step) - 1;
        if self.current.as_ref().is_none_or(|(at, ..)| *at != epoch) {
            self.enter(epoch);
        }
        let within = (step - self.starts[epoch]) as usize;
        let chosen = self
            .current
            .as_ref()
            .and_then(|(_, order, steps)| order.get(steps.get(within)?.clone()));
        (epoch as u64, chosen.unwrap_or_default())
    }

    /// Puts an epoch at hand, and notes where the next one begins.
    fn enter(&mut self, epoch: usize) {
        let count = u32::try_from(self.lengths.len()).unwrap_or(u32::MAX);
        let order = Philox::new(self.seed, random::shuffle(epoch as u64)).permutation(count);
        let [index, shards] = self.shard;
        let own = order.into_iter().skip(index as usize).step_by(shards as usize);
        let order: Vec<u32> = own.collect();
        let lengths = order.iter().map(|&at| self.lengths[at as usize]);
        let steps = fill(lengths, self.budget, usize::MAX);
        if epoch + 1 == self.starts.len() {
            // An epoch without a step would never end; there is always at least one.
            let next = self.starts[epoch] + (steps.len() as u64).max(1);
            self.starts.push(next);
        }
        self.current = Some((epoch, order, steps));
    }
}

/// Cuts items of these lengths into runs of at most `most` that fit into a budget; a longer item is a run of
/// its own.
fn fill(lengths: impl Iterator<Item = usize>, budget: usize, most: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = vec![];
    let mut tokens = 0;
    for (at, length) in lengths.enumerate() {
        match runs.last_mut() {
            Some(run) if tokens + length <= budget && run.len() < most => {
                run.end = at + 1;
                tokens += length;
            }
            _ => {
                runs.push(at..at + 1);
                tokens = length;
            }
        }
    }
    runs
}

/// Sequences in a group, and in a request, at most: what a teacher takes if it is not told otherwise.
pub const MOST_SEQUENCES: usize = 1024;

/// Cuts sequences into groups of at most `tokens` tokens and [`MOST_SEQUENCES`], in order.
pub fn groups<'a>(
    sequences: &[Sequence],
    chosen: &'a [u32],
    tokens: usize,
) -> impl Iterator<Item = &'a [u32]> {
    let lengths = chosen.iter().map(|&at| sequences[at as usize].length);
    fill(lengths, tokens, MOST_SEQUENCES).into_iter().map(move |run| &chosen[run])
}

/// Sequences as the model and the wire take them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Tokens of all sequences.
    pub ids: Vec<u32>,
    /// Tokens of each.
    pub lengths: Vec<u32>,
    /// Positions whose target is learnt, ascending; of sequences that are classified, their first ones.
    pub labelled: Vec<usize>,
    /// The targets of those positions, or classes.
    pub hard: Vec<u32>,
    /// Whether sequences are what has labels, and not positions.
    pub classified: bool,
}

impl Packed {
    /// Of chosen sequences of a corpus, in that order.
    pub fn new(corpus: &Corpus, sequences: &[Sequence], chosen: &[u32]) -> Self {
        let classified = !corpus.classes.is_empty();
        let mut packed = Self { classified, ..Self::default() };
        for &at in chosen {
            let Sequence { start, length } = sequences[at as usize];
            let first = packed.ids.len();
            packed.ids.extend_from_slice(&corpus.ids[start..start + length]);
            packed.lengths.push(length as u32);
            if classified {
                packed.labelled.push(first);
                // A sequence is a document.
                let document = corpus.starts.partition_point(|&other| other < start);
                packed.hard.push(corpus.classes[document]);
                continue;
            }
            for position in 0..length {
                let target = start + position + 1;
                if corpus.learn[target] {
                    packed.labelled.push(first + position);
                    packed.hard.push(corpus.ids[target]);
                }
            }
        }
        packed
    }

    /// As the model takes it.
    pub fn tokens(&self) -> TokenBatch<'_> {
        TokenBatch { ids: &self.ids, lengths: &self.lengths }
    }

    /// As a request holds it: with a mask, where some positions are labelled and others not.
    pub fn to_wire(&self) -> WireSequences {
        let mut token_ids = Vec::with_capacity(4 * self.ids.len());
        self.ids.iter().for_each(|id| token_ids.extend(id.to_le_bytes()));
        let mut mask = vec![];
        if !self.classified && self.labelled.len() < self.ids.len() {
            mask = vec![0u8; self.ids.len().div_ceil(8)];
            self.labelled.iter().for_each(|at| mask[at / 8] |= 1 << (at % 8));
        }
        WireSequences {
            lengths: self.lengths.clone(),
            token_ids: token_ids.into(),
            label_mask: mask.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stillhouse_proto::request::SequencesView;

    use super::*;

    fn corpus(documents: &[(&[u32], &[bool])]) -> Corpus {
        let mut corpus = Corpus::new();
        documents.iter().for_each(|(ids, learn)| corpus.push(ids, learn));
        corpus
    }

    #[test]
    fn every_token_but_the_first_is_a_target_once() {
        let ids: Vec<u32> = (0..10).collect();
        let corpus = corpus(&[(&ids, &[true; 10]), (&[7, 8], &[true; 2])]);
        let sequences = sequences(&corpus, 4);
        let lengths: Vec<_> = sequences.iter().map(|s| (s.start, s.length)).collect();
        assert_eq!(lengths, [(0, 4), (4, 4), (8, 1), (10, 1)]);
        let packed = Packed::new(&corpus, &sequences, &[0, 2, 1, 3]);
        assert_eq!(packed.ids, [0, 1, 2, 3, 8, 4, 5, 6, 7, 7]);
        assert_eq!(packed.hard, [1, 2, 3, 4, 9, 5, 6, 7, 8, 8]);
        assert_eq!(packed.lengths, [4, 1, 4, 1]);
        assert!(packed.to_wire().label_mask.is_empty());
    }

    #[test]
    fn prompts_are_read_and_not_learnt() {
        let marks = [false, false, false, true, true];
        let corpus = corpus(&[(&[1, 2, 3, 4, 5], &marks)]);
        let whole = sequences(&corpus, 4);
        let packed = Packed::new(&corpus, &whole, &[0]);
        assert_eq!((&packed.labelled[..], &packed.hard[..]), (&[2, 3][..], &[4, 5][..]));
        let wire = packed.to_wire();
        let view = SequencesView::new(&wire, 6).unwrap();
        assert_eq!(
            (view.labelled_positions(), view.is_labelled(2), view.is_labelled(1)),
            (2, true, false)
        );
        // Cut in two, the first half has nothing to learn.
        let halves = sequences(&corpus, 2);
        assert_eq!(halves, [Sequence { start: 2, length: 2 }]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// An epoch has every sequence of the shard once, steps keep to the budget, and going straight
        /// to a step gives what walking there gives.
        #[test]
        fn the_order_is_whole_bounded_and_seekable(
            seed: u64,
            lengths in prop::collection::vec(1usize..20, 1..40),
            budget in 20usize..60,
            shards in 1u32..4,
            index in 0u32..4,
        ) {
            let shard = [index % shards, shards];
            let mut walked = Order::new(seed, lengths.clone(), budget, Some(shard));
            prop_assume!(!walked.is_empty());
            let own = (lengths.len() - shard[0] as usize).div_ceil(shards as usize);
            let (mut seen, mut steps) = (vec![], vec![]);
            for step in 0.. {
                let (epoch, chosen) = walked.step(step);
                if epoch == 2 {
                    break;
                }
                prop_assert!(!chosen.is_empty());
                let tokens: usize = chosen.iter().map(|&at| lengths[at as usize]).sum();
                prop_assert!(tokens <= budget);
                steps.push((epoch, chosen.to_vec()));
                seen.extend(chosen.iter().map(|&at| (epoch, at)));
            }
            prop_assert_eq!(seen.len(), 2 * own);
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), 2 * own);
            for (step, expected) in steps.iter().enumerate().rev() {
                let mut sought = Order::new(seed, lengths.clone(), budget, Some(shard));
                let (epoch, chosen) = sought.step(step as u64);
                prop_assert_eq!((epoch, chosen.to_vec()), expected.clone());
            }
        }

        /// All shards together have every sequence once.
        #[test]
        fn shards_do_not_overlap(seed: u64, count in 1usize..40, shards in 1u32..5) {
            let mut seen = vec![];
            for index in 0..shards {
                let mut order = Order::new(seed, vec![1; count], 1000, Some([index, shards]));
                if !order.is_empty() {
                    seen.extend_from_slice(order.step(0).1);
                }
            }
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..count as u32));
        }
    }
}
