//! From a forward pass to the labels that travel.
//!
//! * [`combine`]: one distribution, softened, from the logits of a model or of an ensemble's members.
//! * [`select`]: top k, named ids, and the mass of the rest.
//! * [`sample`]: seeded draws.

mod combine;
mod sample;
mod select;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use combine::{Combiner, Softened};
use rayon::prelude::*;
use stillhouse_nn::softmax::{LOWEST, exp_and_sum, narrow};
use stillhouse_proto::{
    labels::{self, LabelBatch, SoftLabels},
    v1::{DType, DenseKind, Labels, RowError},
};
use stillhouse_runtime::clock;

use crate::{
    ensemble::{Ensemble, Rule},
    error::ServeError,
};

/// A request's encoding, validated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Encoding {
    Dense {
        kind: DenseKind,
        dtype: DType,
    },
    TopK {
        k: usize,
        dtype: DType,
    },
    /// `ids` is `[rows, ids_per_row]`.
    Ids {
        ids_per_row: usize,
        ids: Vec<u32>,
        dtype: DType,
    },
    Sampled {
        draws: u32,
        seed: u64,
    },
    Hidden {
        dtype: DType,
    },
}

impl Encoding {
    /// The value of the metrics' label `encoding`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Dense { .. } => "dense",
            Self::TopK { .. } => "top_k",
            Self::Ids { .. } => "ids",
            Self::Sampled { .. } => "sampled",
            Self::Hidden { .. } => "hidden",
        }
    }

    /// How many values are computed, copied or drawn to encode rows that `values` numbers are
    /// computed or copied for.
    pub(crate) fn work(&self, values: usize, rows: usize, temperatures: usize) -> usize {
        let draws = match self {
            Self::Sampled { draws, .. } => rows.saturating_mul(*draws as usize),
            _ => 0,
        };
        values.max(draws).saturating_mul(temperatures)
    }

    /// Whether the labels are the same at every temperature, and so are sent once.
    pub(crate) fn ignores_temperature(&self) -> bool {
        matches!(self, Self::Hidden { .. } | Self::Dense { kind: DenseKind::Logits, .. })
    }

    /// Whether the labels are made of hidden states.
    pub(crate) fn needs_hidden(&self) -> bool {
        matches!(self, Self::Hidden { .. })
    }

    /// The ids that the client named, all rows'.
    pub(crate) fn named(&self) -> &[u32] {
        match self {
            Self::Ids { ids, .. } => ids,
            _ => &[],
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Dense { dtype, .. }
            | Self::TopK { dtype, .. }
            | Self::Ids { dtype, .. }
            | Self::Hidden { dtype } => *dtype,
            Self::Sampled { .. } => DType::F32,
        }
    }
}

/// What the device computed for the rows of one request.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    pub(crate) rows: usize,
    /// Models of the ensemble, at least 1.
    pub(crate) members: usize,
    /// `[members, rows, classes]`.
    pub(crate) logits: Vec<f32>,
    /// `[rows, hidden_size]`; empty where the encoding does not need it.
    pub(crate) hidden: Vec<f32>,
}

/// What the device computed for the positions of one request to a language model.
pub(crate) struct States {
    pub(crate) rows: usize,
    /// `[rows, d]` of each model of the ensemble.
    pub(crate) members: Vec<Vec<f32>>,
    /// Makes logits of them.
    pub(crate) ensemble: Arc<Ensemble>,
}

impl States {
    /// The logits of some rows; with the hidden states of a single model where they are wanted, and
    /// without logits then.
    fn block(&self, rows: Range<usize>, needs_hidden: bool) -> Result<Forward, ServeError> {
        let mut block =
            Forward { rows: rows.len(), members: 1, logits: Vec::new(), hidden: Vec::new() };
        let own = |states: &[f32]| {
            let width = states.len() / self.rows.max(1);
            rows.start * width..rows.end * width
        };
        if let ([states], true) = (&self.members[..], needs_hidden) {
            block.hidden = states[own(states)].to_vec();
            return Ok(block);
        }
        block.members = self.members.len();
        for (member, states) in self.members.iter().enumerate() {
            block.logits.extend(self.ensemble.logits(member, &states[own(states)])?);
        }
        Ok(block)
    }
}

/// What labels are made of.
pub(crate) enum Computed {
    Logits(Forward),
    /// Of a language model: the logits of all positions at once could be far larger than any answer,
    /// so they are made a block of rows at a time.
    States(States),
}

/// Logits that one thread makes labels of, at least one row of them.
const PART: usize = 1 << 16;

/// Logits that are made at once, of each model, at least one row of them.
const BLOCK: usize = 1 << 22;

/// Logits of one model that are held at once for a request of `rows` rows.
pub(crate) fn block_values(classes: usize, rows: usize) -> usize {
    (BLOCK / classes.max(1)).clamp(1, rows.max(1)).saturating_mul(classes)
}

impl Computed {
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Logits(forward) => forward.rows,
            Self::States(states) => states.rows,
        }
    }
}

/// How long labels are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) until: Option<Instant>,
    /// Set when who asked has gone.
    pub(crate) gone: Arc<AtomicBool>,
}

impl Wanted {
    /// Whether they still are, or what the request ends with.
    pub(crate) fn check(&self) -> Result<(), ServeError> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(ServeError::Cancelled);
        }
        match self.until {
            Some(until) if clock::now() >= until => Err(ServeError::Deadline),
            _ => Ok(()),
        }
    }
}

/// Labels, under a rule, of the rows that have some, one set per temperature (one in all where
/// temperature plays no part), and the rows that have none. Given up between two blocks of rows, or two
/// temperatures, once they are wanted no more.
pub(crate) fn encode(
    computed: &Computed,
    rule: Rule,
    encoding: &Encoding,
    temperatures: &[f32],
    wanted: &Wanted,
) -> Result<(Vec<Labels>, Vec<RowError>), ServeError> {
    let mut encoder = Encoder::new(rule, encoding, temperatures);
    let classes = match computed {
        Computed::Logits(forward) => {
            encoder.add(0, forward, wanted)?;
            forward.logits.len() / (forward.members * forward.rows).max(1)
        }
        Computed::States(states) => {
            let classes = states.ensemble.classes();
            let block = (BLOCK / classes).max(1);
            for first in (0..states.rows).step_by(block) {
                wanted.check()?;
                let rows = first..states.rows.min(first + block);
                encoder.add(first, &states.block(rows, encoding.needs_hidden())?, wanted)?;
            }
            classes
        }
    };
    encoder.finish(classes)
}

/// Labels under way, block after block of a request's rows.
struct Encoder<'a> {
    rule: Rule,
    encoding: &'a Encoding,
    temperatures: &'a [f32],
    /// One for each temperature, from the first block on.
    sets: Vec<SoftLabels>,
    rows: usize,
    errors: Vec<RowError>,
}

impl<'a> Encoder<'a> {
    fn new(rule: Rule, encoding: &'a Encoding, temperatures: &'a [f32]) -> Self {
        let temperatures = if encoding.ignores_temperature() { &[0.0] } else { temperatures };
        Self { rule, encoding, temperatures, sets: Vec::new(), rows: 0, errors: Vec::new() }
    }

    /// Adds the block of rows that begins at row `first` of the request.
    fn add(&mut self, first: usize, block: &Forward, wanted: &Wanted) -> Result<(), ServeError> {
        let rows = Rows::of(first, block, self.rule);
        self.rows += rows.good.len();
        self.errors.extend(rows.errors());
        let parts = rows.parts();
        for (at, &temperature) in self.temperatures.iter().enumerate() {
            wanted.check()?;
            let labels = |part: &Rows<'_>| part.labels(self.encoding, temperature);
            let own: Vec<SoftLabels> = match &parts[..] {
                [one] => vec![labels(one)],
                parts => parts.par_iter().map(labels).collect(),
            };
            for own in own {
                match self.sets.get_mut(at) {
                    None => self.sets.push(own),
                    Some(all) => append(all, own),
                }
            }
        }
        Ok(())
    }

    fn finish(self, classes: usize) -> Result<(Vec<Labels>, Vec<RowError>), ServeError> {
        let Self { encoding, temperatures, sets, rows, errors, .. } = self;
        let of = |(&temperature, labels)| {
            let batch = LabelBatch { temperature, rows, classes, labels };
            labels::encode(&batch, encoding.dtype()).map_err(|error| ServeError::Invalid {
                field: "encoding.dtype".to_owned(),
                reason: format!("cannot carry these labels: {error}"),
            })
        };
        let labels = temperatures.iter().zip(sets).map(of).collect::<Result<_, _>>()?;
        Ok((labels, errors))
    }
}

/// Adds rows of the same encoding.
fn append(all: &mut SoftLabels, own: SoftLabels) {
    match (all, own) {
        (SoftLabels::Dense { values, .. }, SoftLabels::Dense { values: own, .. }) => {
            values.extend(own);
        }
        (
            SoftLabels::TopK { ids, log_probabilities, log_tail_mass, .. },
            SoftLabels::TopK {
                ids: own_ids,
                log_probabilities: own_values,
                log_tail_mass: own_tails,
                ..
            },
        ) => {
            ids.extend(own_ids);
            log_probabilities.extend(own_values);
            log_tail_mass.extend(own_tails);
        }
        (
            SoftLabels::Ids { log_probabilities, log_tail_mass, .. },
            SoftLabels::Ids { log_probabilities: own_values, log_tail_mass: own_tails, .. },
        ) => {
            log_probabilities.extend(own_values);
            log_tail_mass.extend(own_tails);
        }
        (
            SoftLabels::Sampled { distinct, ids, counts, .. },
            SoftLabels::Sampled {
                distinct: own_distinct, ids: own_ids, counts: own_counts, ..
            },
        ) => {
            distinct.extend(own_distinct);
            ids.extend(own_ids);
            counts.extend(own_counts);
        }
        (SoftLabels::Hidden { states, .. }, SoftLabels::Hidden { states: own, .. }) => {
            states.extend(own);
        }
        // One encoder makes one kind of labels.
        _ => {}
    }
}

/// A forward pass, split into rows that every member has finite values for and rows that are not.
struct Rows<'a> {
    /// Index of the first row in the request.
    first: usize,
    forward: &'a Forward,
    rule: Rule,
    classes: usize,
    width: usize,
    good: Vec<usize>,
}

impl<'a> Rows<'a> {
    fn of(first: usize, forward: &'a Forward, rule: Rule) -> Self {
        let classes = forward.logits.len() / (forward.members * forward.rows).max(1);
        let width = forward.hidden.len() / forward.rows.max(1);
        let mut rows = Self { first, forward, rule, classes, width, good: Vec::new() };
        // Not `all`, which would look at one after the other.
        let finite = |row: &[f32]| row.iter().fold(true, |all, value| all & value.is_finite());
        rows.good = (0..forward.rows)
            .filter(|&row| rows.logits(row).all(finite) && finite(rows.hidden(row)))
            .collect();
        rows
    }

    /// The same rows in parts, at least one, that are each worth a thread.
    fn parts(&self) -> Vec<Self> {
        let rows = (PART / self.classes.max(1)).max(1);
        if self.good.len() <= rows {
            return vec![Self { good: self.good.clone(), ..*self }];
        }
        let part = |good: &[usize]| Self { good: good.to_vec(), ..*self };
        self.good.chunks(rows).map(part).collect()
    }

    /// The logits that each member gives a row.
    fn logits(&self, row: usize) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        let (logits, rows, classes) = (&self.forward.logits, self.forward.rows, self.classes);
        (0..self.forward.members)
            .map(move |member| &logits[(member * rows + row) * classes..][..classes])
    }

    fn hidden(&self, row: usize) -> &'a [f32] {
        &self.forward.hidden[row * self.width..][..self.width]
    }

    fn errors(&self) -> Vec<RowError> {
        let mut good = self.good.iter().copied().peekable();
        (0..self.forward.rows)
            .filter(|row| good.next_if_eq(row).is_none())
            .map(|row| RowError {
                row: (self.first + row) as u32,
                message: "the teacher's output for this row is not finite".to_owned(),
            })
            .collect()
    }

    /// The hidden states of all good rows.
    fn all_hidden(&self) -> Vec<f32> {
        let mut values = Vec::new();
        self.good.iter().for_each(|&row| values.extend_from_slice(self.hidden(row)));
        values
    }

    /// The logits of all good rows: of several members, their mean. Under [`Rule::Arithmetic`] a
    /// request for them is refused.
    fn all_logits(&self) -> Vec<f32> {
        let (mut values, mut mean) = (Vec::new(), Vec::new());
        for &row in &self.good {
            let mut members = self.logits(row);
            if let (1, Some(only)) = (members.len(), members.next()) {
                values.extend_from_slice(only);
            } else {
                combine::mean_logits(self.logits(row), &mut mean);
                values.extend(mean.iter().map(|&z| z as f32));
            }
        }
        values
    }

    /// Calls `each` with every good row's index in the request and its distribution.
    fn soften(&self, temperature: f32, mut each: impl FnMut(usize, &Softened<'_>)) {
        let mut combiner = Combiner::new(self.rule, temperature);
        for &row in &self.good {
            each(self.first + row, &combiner.soften(self.logits(row)));
        }
    }

    fn labels(&self, encoding: &Encoding, temperature: f32) -> SoftLabels {
        let lowest = lowest_log_probability(encoding.dtype());
        let narrow = |x: f64| narrow(x, lowest);
        match encoding {
            Encoding::Dense { kind: DenseKind::Logits, .. } => {
                SoftLabels::Dense { kind: DenseKind::Logits, values: self.all_logits() }
            }
            Encoding::Dense { kind, .. } => {
                let mut values = Vec::with_capacity(self.good.len() * self.classes);
                self.soften(temperature, |_, row| {
                    let logs = row.log_probabilities;
                    match kind {
                        DenseKind::Probabilities => {
                            let mut masses = logs.to_vec();
                            exp_and_sum(&mut masses);
                            values.extend(masses.iter().map(|&x| x as f32));
                        }
                        _ => values.extend(logs.iter().map(|&x| narrow(x))),
                    }
                });
                SoftLabels::Dense { kind: *kind, values }
            }
            Encoding::TopK { k, .. } => {
                let (mut ids, mut values, mut tails) = (Vec::new(), Vec::new(), Vec::new());
                self.soften(temperature, |_, row| {
                    let (top, logs) = (row.top_k(*k), row.log_probabilities);
                    values.extend(top.iter().map(|&id| narrow(logs[id as usize])));
                    tails.push(select::log_mass_beside(logs, &top) as f32);
                    ids.extend(top);
                });
                SoftLabels::TopK { k: *k, ids, log_probabilities: values, log_tail_mass: tails }
            }
            Encoding::Ids { ids_per_row, ids, .. } => {
                let (mut values, mut tails) = (Vec::new(), Vec::new());
                self.soften(temperature, |row, Softened { log_probabilities: logs, .. }| {
                    let named = &ids[row * ids_per_row..][..*ids_per_row];
                    values.extend(named.iter().map(|&id| narrow(logs[id as usize])));
                    tails.push(select::log_mass_beside(logs, named) as f32);
                });
                SoftLabels::Ids {
                    ids_per_row: *ids_per_row,
                    log_probabilities: values,
                    log_tail_mass: tails,
                }
            }
            Encoding::Sampled { draws, seed } => {
                let (mut distinct, mut ids, mut counts) = (Vec::new(), Vec::new(), Vec::new());
                self.soften(temperature, |row, softened| {
                    distinct.push(sample::draw(
                        softened.log_probabilities,
                        *draws,
                        *seed,
                        row as u64,
                        &mut ids,
                        &mut counts,
                    ));
                });
                SoftLabels::Sampled { draws: *draws, distinct, ids, counts }
            }
            Encoding::Hidden { .. } => {
                SoftLabels::Hidden { width: self.width, states: self.all_hidden() }
            }
        }
    }
}

/// The lowest finite log-probability that a dtype holds.
fn lowest_log_probability(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => -65504.0,
        _ => LOWEST,
    }
}

#[cfg(test)]
mod tests;
