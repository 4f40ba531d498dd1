//! What the models compute for a unit of input, before any temperature, rule or encoding.

use std::sync::Arc;

use crate::{
    encode::{Computed, Forward, States},
    ensemble::{Accepts, Ensemble},
};

/// Of a classifier: the logits of every member, `[members, classes]`, and, where somebody has asked
/// for them, the hidden states of the only member, `[hidden_size]`. Of a language model: the hidden
/// states of every member, each `[labelled positions, d]`.
pub(crate) type Output = Arc<[f32]>;

/// How an [`Output`] is laid out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Layout {
    Logits {
        members: usize,
        classes: usize,
        /// 0 for several members.
        hidden: usize,
    },
    States {
        /// Of each member.
        widths: Vec<usize>,
    },
}

impl Layout {
    pub(crate) fn of(ensemble: &Ensemble) -> Self {
        if let Accepts::Sequences { every_position: true, .. } = ensemble.accepts() {
            return Self::States { widths: ensemble.hidden_sizes() };
        }
        Self::Logits {
            members: ensemble.len(),
            classes: ensemble.classes(),
            hidden: ensemble.hidden_size(),
        }
    }

    /// Numbers of a unit with this many labels; of a classifier, without hidden states.
    fn least(&self, labels: usize) -> usize {
        match self {
            Self::Logits { members, classes, .. } => members * classes,
            Self::States { widths } => labels * widths.iter().sum::<usize>(),
        }
    }

    /// Whether an output may be that of a unit with this many labels.
    pub(crate) fn fits(&self, output: &[f32], labels: usize) -> bool {
        let least = self.least(labels);
        let most = match self {
            Self::Logits { hidden, .. } => least + hidden,
            Self::States { .. } => least,
        };
        output.len() == least || output.len() == most
    }

    /// Whether an output serves a request that needs hidden states, or one that does not.
    pub(crate) fn serves(&self, output: &[f32], needs_hidden: bool) -> bool {
        match self {
            Self::Logits { members, classes, hidden } => {
                !needs_hidden || output.len() == members * classes + hidden
            }
            Self::States { .. } => true,
        }
    }

    /// How many values are computed or copied to make labels of outputs.
    pub(crate) fn work(&self, outputs: &[Output], needs_hidden: bool, classes: usize) -> usize {
        let values: usize = outputs.iter().map(|output| output.len()).sum();
        match self {
            // Each logit is a product of as many terms as a state has.
            Self::States { .. } if !needs_hidden => values.saturating_mul(classes),
            _ => values,
        }
    }

    /// What a turn costs in which that many values are computed or copied: about milliseconds of a core.
    pub(crate) fn turn(&self, values: usize, needs_hidden: bool) -> u64 {
        let values_of_a_millisecond = match self {
            // Products of a row's state and the output projection.
            Self::States { .. } if !needs_hidden => 1 << 23,
            _ => 1 << 17,
        };
        values.div_ceil(values_of_a_millisecond) as u64
    }

    /// The outputs of a request's units, in their order, as its labels are made of them. All of them
    /// serve it.
    pub(crate) fn gather(
        &self,
        outputs: &[Output],
        needs_hidden: bool,
        ensemble: &Arc<Ensemble>,
    ) -> Computed {
        match self {
            &Self::Logits { members, classes, .. } => {
                let rows = outputs.len();
                let mut logits = Vec::with_capacity(rows * members * classes);
                for member in 0..members {
                    for output in outputs {
                        logits.extend_from_slice(&output[member * classes..][..classes]);
                    }
                }
                let mut hidden = Vec::new();
                if needs_hidden {
                    outputs.iter().for_each(|row| hidden.extend_from_slice(&row[classes..]));
                }
                Computed::Logits(Forward { rows, members, logits, hidden })
            }
            Self::States { widths } => {
                let all: usize = widths.iter().sum();
                let rows = outputs.iter().map(|output| output.len() / all.max(1)).sum();
                let mut before = 0;
                let members = widths.iter().map(|width| {
                    let mut states = Vec::with_capacity(rows * width);
                    for output in outputs {
                        let positions = output.len() / all.max(1);
                        let own = &output[positions * before..][..positions * width];
                        states.extend_from_slice(own);
                    }
                    before += width;
                    states
                });
                let members = members.collect();
                Computed::States(States { rows, members, ensemble: Arc::clone(ensemble) })
            }
        }
    }
}
