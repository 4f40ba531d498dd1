//! From a request as it came to one that the scheduler can take.

use std::time::Duration;

use stillhouse_proto::{
    TensorView,
    request::SequencesView,
    v1::{
        self, DType, DenseKind, EnsembleRule, LabelRequest, Sequences, Tensor, encoding::Kind,
        label_request::Inputs,
    },
};

use crate::{
    cache::{Key, Keyer},
    encode::{self, Encoding},
    ensemble::{Accepts, Rule},
    error::ServeError,
    rows::AcceptedInput,
    settings::Limits,
    units::{JobInput, Unit},
};

/// Longest client name, in bytes.
const MAX_CLIENT_BYTES: usize = 128;

/// Draws in one request, over all rows and temperatures: about a second of one core.
pub(crate) const MAX_DRAWS: usize = 1 << 24;

/// Bytes of a row's error in an answer, at most.
const ROW_ERROR: usize = 64;

/// What the models and the settings allow.
#[derive(Clone, Debug)]
pub(crate) struct Contract {
    pub(crate) accepts: Accepts,
    pub(crate) classes: usize,
    /// 0 for several models.
    pub(crate) hidden_size: usize,
    /// Widths of the members' hidden states, together.
    pub(crate) state_width: usize,
    /// Models that answer as one, at least 1.
    pub(crate) members: usize,
    /// Of requests that do not say.
    pub(crate) default_rule: Rule,
    pub(crate) limits: Limits,
}

/// Element types that features may have.
pub(crate) const FEATURE_DTYPES: [DType; 4] = [DType::U8, DType::F32, DType::F16, DType::Bf16];

/// A request whose every field is within its range.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: u64,
    /// Empty: none was given.
    pub(crate) client: String,
    pub(crate) input: AcceptedInput,
    /// Labels that it asks for.
    pub(crate) rows: usize,
    pub(crate) temperatures: Vec<f32>,
    pub(crate) rule: Rule,
    pub(crate) encoding: Encoding,
    pub(crate) timeout: Option<Duration>,
    /// Rows, or tokens of a text model.
    pub(crate) cost: u64,
    /// What the request holds in memory until its answer is taken: its rows, what the device
    /// computes of them, and the answer.
    pub(crate) bytes: u64,
}

impl Contract {
    /// Whether what is queued is counted in tokens.
    pub(crate) fn takes_tokens(&self) -> bool {
        matches!(self.accepts, Accepts::Sequences { .. })
    }

    /// Checks a request.
    pub(crate) fn accept(&self, request: LabelRequest) -> Result<Accepted, ServeError> {
        if request.client.len() > MAX_CLIENT_BYTES {
            let found = format!("{} bytes long", request.client.len());
            return Err(ServeError::invalid("client", found, "at most 128 bytes"));
        }
        self.check_temperatures(&request.temperatures)?;
        let (input, rows) = self.inputs(request.inputs)?;
        let rule = self.rule(request.ensemble_rule)?;
        let encoding = self.encoding(request.encoding, rows, rule)?;
        self.check_draws(&encoding, rows, request.temperatures.len())?;
        let reply = self.reply_size(&encoding, rows, request.temperatures.len())?;
        let cost = match &input {
            AcceptedInput::Features(_) => rows as u64,
            AcceptedInput::Sequences(sequences) => sequences.token_ids.len() as u64 / 4,
        };
        let values = self.values(&input, rows).saturating_add(encoding.named().len());
        Ok(Accepted {
            id: request.id,
            client: request.client,
            input,
            rows,
            temperatures: request.temperatures,
            rule,
            encoding,
            timeout: (request.timeout_ms > 0)
                .then(|| Duration::from_millis(request.timeout_ms.into())),
            cost,
            bytes: values.saturating_mul(size_of::<f32>()).saturating_add(reply) as u64,
        })
    }

    fn check_temperatures(&self, temperatures: &[f32]) -> Result<(), ServeError> {
        let most = self.limits.max_temperatures as usize;
        if temperatures.is_empty() || temperatures.len() > most {
            let found = format!("a list of {}", temperatures.len());
            return Err(ServeError::invalid("temperatures", found, format!("1 to {most} values")));
        }
        for (index, temperature) in temperatures.iter().enumerate() {
            if !(temperature.is_finite() && *temperature > 0.0) {
                let field = format!("temperatures[{index}]");
                return Err(ServeError::invalid(field, temperature, "a finite number above 0"));
            }
        }
        Ok(())
    }

    /// Numbers that a request holds in memory besides its answer: its input and what the device
    /// computes of it.
    fn values(&self, input: &AcceptedInput, rows: usize) -> usize {
        let per_row = |values: usize| rows.saturating_mul(values);
        match (&self.accepts, input) {
            (Accepts::Features { width, .. }, _) => {
                // Of a single model hidden states may come along, for somebody else. What the cache
                // has and the copy that labels are made of are there at one time.
                let logits = self.members.saturating_mul(self.classes);
                let outputs = logits.saturating_add(self.hidden_size).saturating_mul(2);
                per_row(outputs.saturating_add(*width))
            }
            (Accepts::Sequences { every_position, .. }, AcceptedInput::Sequences(sequences)) => {
                // Ids as they came, as the model takes them, and a mark for each.
                let tokens = sequences.token_ids.len() / 4 * 4;
                // In the cache, and in the copy that labels are made of.
                let width = self.state_width.saturating_mul(2);
                let logits = match every_position {
                    true => self.members.saturating_mul(encode::block_values(self.classes, rows)),
                    false => per_row(self.members.saturating_mul(self.classes)),
                };
                tokens.saturating_add(per_row(width)).saturating_add(logits)
            }
            (Accepts::Sequences { .. }, AcceptedInput::Features(_)) => 0,
        }
    }

    /// The units of an accepted request's input, with keys where a keyer is given.
    pub(crate) fn units(
        &self,
        input: &AcceptedInput,
        keyer: Option<&Keyer>,
    ) -> Result<Vec<Unit>, ServeError> {
        match (input, &self.accepts) {
            (AcceptedInput::Features(features), _) => {
                let rows = features.shape.first().copied().unwrap_or(0) as usize;
                let bytes = features.data.len() / rows.max(1);
                let key = |row: usize| -> Option<Key> {
                    let row = &features.data[row * bytes..][..bytes];
                    Some(keyer?.features(features.dtype(), row))
                };
                Ok((0..rows).map(|row| Unit { key: key(row), labels: 1 }).collect())
            }
            (AcceptedInput::Sequences(sequences), accepts) => {
                let view = view(sequences)?;
                let every_position =
                    matches!(accepts, Accepts::Sequences { every_position: true, .. });
                let unit = |row| {
                    let positions = view.row(row).unwrap_or_default();
                    let marks: Vec<bool> = match every_position {
                        true => positions.map(|at| view.is_labelled(at)).collect(),
                        false => Vec::new(),
                    };
                    let some = marks.contains(&false).then_some(&marks[..]);
                    let ids = view.row_bytes(row).unwrap_or_default();
                    let labels = match every_position {
                        true => marks.iter().filter(|labelled| **labelled).count(),
                        false => 1,
                    };
                    Unit { key: keyer.map(|keyer| keyer.sequence(ids, some)), labels }
                };
                Ok((0..view.rows()).map(unit).collect())
            }
        }
    }

    /// Some units of an accepted request's input, ascending, as the model takes them.
    pub(crate) fn input(
        &self,
        input: &AcceptedInput,
        units: &[usize],
    ) -> Result<JobInput, ServeError> {
        match (input, &self.accepts) {
            (AcceptedInput::Features(features), accepts) => {
                let all = TensorView::new(features)
                    .map_err(|error| ServeError::at("features", error))?
                    .to_f32();
                let rows = features.shape.first().copied().unwrap_or(0) as usize;
                let width = all.len() / rows.max(1);
                let mut values = all;
                if units.len() < rows {
                    let mut some = Vec::with_capacity(units.len() * width);
                    units
                        .iter()
                        .for_each(|row| some.extend_from_slice(&values[row * width..][..width]));
                    values = some;
                }
                if let (DType::U8, Accepts::Features { rescale_factor, .. }) =
                    (features.dtype(), accepts)
                {
                    values.iter_mut().for_each(|value| *value *= rescale_factor);
                }
                Ok(JobInput::Features { width, values })
            }
            (AcceptedInput::Sequences(sequences), accepts) => {
                let view = view(sequences)?;
                let every_position =
                    matches!(accepts, Accepts::Sequences { every_position: true, .. });
                let all = view.token_ids();
                let (mut ids, mut lengths, mut labelled) = (Vec::new(), Vec::new(), Vec::new());
                for &unit in units {
                    let positions = view.row(unit).unwrap_or_default();
                    if every_position {
                        let first = ids.len();
                        let marked = positions.clone().filter(|&at| view.is_labelled(at));
                        labelled.extend(marked.map(|at| first + at - positions.start));
                    }
                    lengths.push(sequences.lengths[unit]);
                    ids.extend_from_slice(&all[positions]);
                }
                Ok(JobInput::Tokens { ids, lengths, labelled })
            }
        }
    }

    /// The input of a request, and how many labels it asks for.
    fn inputs(&self, inputs: Option<Inputs>) -> Result<(AcceptedInput, usize), ServeError> {
        match (inputs, &self.accepts) {
            (Some(Inputs::Features(tensor)), &Accepts::Features { width, .. }) => {
                let rows = self.features(&tensor, width)?;
                Ok((AcceptedInput::Features(tensor), rows))
            }
            (Some(Inputs::Sequences(sequences)), Accepts::Sequences { .. }) => {
                let rows = self.sequences(&sequences)?;
                Ok((AcceptedInput::Sequences(sequences), rows))
            }
            (Some(Inputs::Sequences(_)), Accepts::Features { .. }) => {
                let expected = "features: this teacher is a classifier of features";
                Err(ServeError::invalid("inputs", "sequences", expected))
            }
            (Some(Inputs::Features(_)), Accepts::Sequences { .. }) => {
                let expected = "sequences: this teacher takes token ids";
                Err(ServeError::invalid("inputs", "features", expected))
            }
            (None, Accepts::Features { .. }) => {
                Err(ServeError::invalid("inputs", "not set", "features"))
            }
            (None, Accepts::Sequences { .. }) => {
                Err(ServeError::invalid("inputs", "not set", "sequences"))
            }
        }
    }

    fn features(&self, tensor: &Tensor, width: usize) -> Result<usize, ServeError> {
        // Rows first: an empty batch and one above the limit say so, whatever else is wrong.
        let rows = tensor.shape.first().copied().unwrap_or(0);
        let most = u64::from(self.limits.max_rows);
        if !(1..=most).contains(&rows) {
            let found = format!("{rows} rows");
            return Err(ServeError::invalid("features.shape[0]", found, format!("1 to {most}")));
        }
        if tensor.shape.len() != 2 || tensor.shape[1] != width as u64 {
            let expected = format!("[rows, {width}]");
            let found = match tensor.shape.len() {
                0..=8 => format!("{:?}", tensor.shape),
                dimensions => format!("of {dimensions} dimensions"),
            };
            return Err(ServeError::invalid("features.shape", found, expected));
        }
        TensorView::new(tensor).map_err(|error| ServeError::at("features", error))?;
        Ok(rows as usize)
    }

    fn sequences(&self, sequences: &Sequences) -> Result<usize, ServeError> {
        let &Accepts::Sequences { max_length, vocabulary, every_position, .. } = &self.accepts
        else {
            return Ok(0);
        };
        let (rows, most) = (sequences.lengths.len(), self.limits.max_rows);
        if rows > most as usize {
            let found = format!("of {rows} rows");
            return Err(ServeError::invalid("sequences.lengths", found, format!("of 1 to {most}")));
        }
        let tokens: u64 = sequences.lengths.iter().copied().map(u64::from).sum();
        let most = self.limits.max_tokens;
        if tokens > u64::from(most) {
            let found = format!("{tokens} tokens in all");
            return Err(ServeError::invalid("sequences.lengths", found, format!("at most {most}")));
        }
        let long = |length: &u32| *length as usize > max_length;
        if let Some(row) = sequences.lengths.iter().position(long) {
            let found = sequences.lengths[row];
            let (field, expected) =
                (format!("sequences.lengths[{row}]"), format!("1 to {max_length}"));
            return Err(ServeError::invalid(field, found, expected));
        }
        let vocabulary = u32::try_from(vocabulary).unwrap_or(u32::MAX);
        let view = SequencesView::new(sequences, vocabulary)
            .map_err(|error| ServeError::at("sequences", error))?;
        if every_position {
            return Ok(view.labelled_positions());
        }
        if !sequences.label_mask.is_empty() {
            let found = format!("{} bytes long", sequences.label_mask.len());
            let expected = "empty: this teacher gives every sequence one label";
            return Err(ServeError::invalid("sequences.label_mask", found, expected));
        }
        Ok(view.rows())
    }

    fn rule(&self, rule: i32) -> Result<Rule, ServeError> {
        match EnsembleRule::try_from(rule) {
            Ok(EnsembleRule::Unspecified) => Ok(self.default_rule),
            Ok(EnsembleRule::Arithmetic) => Ok(Rule::Arithmetic),
            Ok(EnsembleRule::Geometric) => Ok(Rule::Geometric),
            Err(_) => Err(ServeError::invalid("ensemble_rule", rule, "an EnsembleRule, 0 to 2")),
        }
    }

    fn encoding(
        &self,
        encoding: Option<v1::Encoding>,
        rows: usize,
        rule: Rule,
    ) -> Result<Encoding, ServeError> {
        let Some(kind) = encoding.and_then(|encoding| encoding.kind) else {
            let expected = "one of dense, top_k, ids, sampled, hidden";
            return Err(ServeError::invalid("encoding", "not set", expected));
        };
        match kind {
            Kind::Dense(dense) => {
                let kind = dense_kind(dense.kind)?;
                let several = self.members > 1;
                if several && rule == Rule::Arithmetic && kind == DenseKind::Logits {
                    let expected = format!(
                        "LOG_PROBABILITIES or PROBABILITIES, or ensemble_rule GEOMETRIC: the \
                         arithmetic mean over {} models has no logits",
                        self.members
                    );
                    return Err(ServeError::invalid("encoding.dense.kind", "LOGITS", expected));
                }
                Ok(Encoding::Dense {
                    kind,
                    dtype: label_dtype("encoding.dense.dtype", dense.dtype)?,
                })
            }
            Kind::TopK(top_k) => {
                let k = top_k.k as usize;
                if !(1..=self.classes).contains(&k) {
                    let expected = format!("1 to the {} classes", self.classes);
                    return Err(ServeError::invalid("encoding.top_k.k", k, expected));
                }
                Ok(Encoding::TopK { k, dtype: label_dtype("encoding.top_k.dtype", top_k.dtype)? })
            }
            Kind::Ids(named) => {
                let ids = named.unpack(rows, self.classes as u32);
                Ok(Encoding::Ids {
                    ids: ids.map_err(|error| ServeError::at("encoding.ids", error))?,
                    ids_per_row: named.ids_per_row as usize,
                    dtype: label_dtype("encoding.ids.dtype", named.dtype)?,
                })
            }
            Kind::Sampled(sampled) => {
                let most = u32::from(u16::MAX);
                if !(1..=most).contains(&sampled.draws) {
                    let expected = format!("1 to {most}");
                    return Err(ServeError::invalid(
                        "encoding.sampled.draws",
                        sampled.draws,
                        expected,
                    ));
                }
                Ok(Encoding::Sampled { draws: sampled.draws, seed: sampled.seed })
            }
            Kind::Hidden(_) if self.members > 1 => {
                let expected = format!(
                    "one of dense, top_k, ids, sampled: the {} models of this ensemble have no \
                     hidden state in common",
                    self.members
                );
                Err(ServeError::invalid("encoding", "hidden", expected))
            }
            Kind::Hidden(hidden) => {
                Ok(Encoding::Hidden { dtype: label_dtype("encoding.hidden.dtype", hidden.dtype)? })
            }
        }
    }

    /// Refuses draws that would keep a processor busy for longer than any forward pass.
    fn check_draws(
        &self,
        encoding: &Encoding,
        rows: usize,
        temperatures: usize,
    ) -> Result<(), ServeError> {
        let Encoding::Sampled { draws, .. } = encoding else { return Ok(()) };
        let all = rows.saturating_mul(*draws as usize).saturating_mul(temperatures);
        if all > MAX_DRAWS {
            let found = format!("{draws} for each of {rows} rows and {temperatures} temperatures");
            let expected = format!("at most {MAX_DRAWS} draws in one request");
            return Err(ServeError::invalid("encoding.sampled.draws", found, expected));
        }
        Ok(())
    }

    /// Most bytes of the answer. Refuses what could not be sent back in one message.
    fn reply_size(
        &self,
        encoding: &Encoding,
        rows: usize,
        temperatures: usize,
    ) -> Result<usize, ServeError> {
        let size = |dtype: &DType| if *dtype == DType::F32 { 4 } else { 2 };
        let per_row = match encoding {
            Encoding::Dense { dtype, .. } => self.classes * size(dtype),
            Encoding::TopK { k, dtype } => k * (4 + size(dtype)) + 4,
            Encoding::Ids { ids_per_row, dtype, .. } => ids_per_row * size(dtype) + 4,
            Encoding::Sampled { draws, .. } => self.classes.min(*draws as usize) * 6 + 2,
            Encoding::Hidden { dtype } => self.hidden_size * size(dtype),
        };
        let sets = if encoding.ignores_temperature() { 1 } else { temperatures };
        // A row has labels or an error. Then framing and the fixed fields of each set of labels.
        let per_row_all = per_row.saturating_mul(sets).max(ROW_ERROR);
        let bytes = per_row_all.saturating_mul(rows).saturating_add(256 * (sets + 1));
        let most = self.limits.max_message_bytes as usize;
        if bytes > most {
            let found =
                format!("{rows} * {per_row} bytes * {sets} temperatures, {bytes} bytes of labels");
            return Err(ServeError::invalid(
                "rows",
                found,
                format!("a reply of at most {most} bytes"),
            ));
        }
        Ok(bytes)
    }
}

/// A view of sequences that were checked before.
fn view(sequences: &Sequences) -> Result<SequencesView<'_>, ServeError> {
    let view = SequencesView::new(sequences, u32::MAX);
    view.map_err(|error| ServeError::at("sequences", error))
}

fn dense_kind(kind: i32) -> Result<DenseKind, ServeError> {
    match DenseKind::try_from(kind) {
        Ok(DenseKind::Unspecified) => Ok(DenseKind::LogProbabilities),
        Ok(kind) => Ok(kind),
        Err(_) => Err(ServeError::invalid("encoding.dense.kind", kind, "a DenseKind, 0 to 3")),
    }
}

/// The element type that labels should travel as; not set means f32.
pub(crate) fn label_dtype(field: &str, dtype: i32) -> Result<DType, ServeError> {
    match DType::try_from(dtype) {
        Ok(DType::Unspecified) => Ok(DType::F32),
        Ok(dtype @ (DType::F32 | DType::F16 | DType::Bf16)) => Ok(dtype),
        Ok(other) => Err(ServeError::invalid(field, other.as_str_name(), "F32, F16 or BF16")),
        Err(_) => Err(ServeError::invalid(field, dtype, "F32 (1), F16 (2) or BF16 (3)")),
    }
}

#[cfg(test)]
mod tests;
