//! From a request as it came to one that the scheduler can take.

use std::time::Duration;

use stillhouse_proto::{
    TensorView,
    v1::{
        self, DType, DenseKind, EnsembleRule, LabelRequest, Tensor, encoding::Kind,
        label_request::Inputs,
    },
};

use crate::{encode::Encoding, ensemble::Rule, error::ServeError, settings::Limits};

/// Longest client name, in bytes.
const MAX_CLIENT_BYTES: usize = 128;

/// Draws in one request, over all rows and temperatures: about a second of one core.
pub(crate) const MAX_DRAWS: usize = 1 << 24;

/// Bytes of a row's error in an answer, at most.
const ROW_ERROR: usize = 64;

/// What the models and the settings allow.
#[derive(Clone, Debug)]
pub(crate) struct Contract {
    pub(crate) input_width: usize,
    pub(crate) classes: usize,
    /// 0 for several models.
    pub(crate) hidden_size: usize,
    /// Models that answer as one, at least 1.
    pub(crate) members: usize,
    /// Of requests that do not say.
    pub(crate) default_rule: Rule,
    pub(crate) rescale_factor: f32,
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
    /// `[rows, input_width]`, as it came.
    pub(crate) features: Tensor,
    pub(crate) rows: usize,
    pub(crate) temperatures: Vec<f32>,
    pub(crate) rule: Rule,
    pub(crate) encoding: Encoding,
    pub(crate) timeout: Option<Duration>,
    /// What the request holds in memory until its answer is taken: its rows, what the device
    /// computes of them, and the answer.
    pub(crate) bytes: u64,
}

impl Contract {
    /// Checks a request.
    pub(crate) fn accept(&self, request: LabelRequest) -> Result<Accepted, ServeError> {
        if request.client.len() > MAX_CLIENT_BYTES {
            let found = format!("{} bytes long", request.client.len());
            return Err(ServeError::invalid("client", found, "at most 128 bytes"));
        }
        self.check_temperatures(&request.temperatures)?;
        let (features, rows) = self.features(request.inputs)?;
        let rule = self.rule(request.ensemble_rule)?;
        let encoding = self.encoding(request.encoding, rows, rule)?;
        self.check_draws(&encoding, rows, request.temperatures.len())?;
        let reply = self.reply_size(&encoding, rows, request.temperatures.len())?;
        let hidden = if encoding.needs_hidden() { self.hidden_size } else { 0 };
        let logits = self.members.saturating_mul(self.classes);
        let computed = rows.saturating_mul(logits.saturating_add(hidden));
        let input = rows.saturating_mul(self.input_width);
        let values = input.saturating_add(computed).saturating_add(encoding.named().len());
        Ok(Accepted {
            id: request.id,
            client: request.client,
            features,
            rows,
            temperatures: request.temperatures,
            rule,
            encoding,
            timeout: (request.timeout_ms > 0)
                .then(|| Duration::from_millis(request.timeout_ms.into())),
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

    /// The rows of an accepted request as the model takes them, `[rows, input_width]`.
    pub(crate) fn input(&self, features: &Tensor) -> Result<Vec<f32>, ServeError> {
        let view = TensorView::new(features).map_err(|error| ServeError::at("features", error))?;
        let mut input = view.to_f32();
        if view.dtype() == DType::U8 {
            input.iter_mut().for_each(|value| *value *= self.rescale_factor);
        }
        Ok(input)
    }

    fn features(&self, inputs: Option<Inputs>) -> Result<(Tensor, usize), ServeError> {
        let tensor = match inputs {
            Some(Inputs::Features(tensor)) => tensor,
            Some(Inputs::Sequences(_)) => {
                let expected = "features: this teacher is a classifier of features";
                return Err(ServeError::invalid("inputs", "sequences", expected));
            }
            None => return Err(ServeError::invalid("inputs", "not set", "features")),
        };
        // Rows first: an empty batch and one above the limit say so, whatever else is wrong.
        let rows = tensor.shape.first().copied().unwrap_or(0);
        let most = u64::from(self.limits.max_rows);
        if !(1..=most).contains(&rows) {
            let found = format!("{rows} rows");
            return Err(ServeError::invalid("features.shape[0]", found, format!("1 to {most}")));
        }
        if tensor.shape.len() != 2 || tensor.shape[1] != self.input_width as u64 {
            let expected = format!("[rows, {}]", self.input_width);
            let found = match tensor.shape.len() {
                0..=8 => format!("{:?}", tensor.shape),
                dimensions => format!("of {dimensions} dimensions"),
            };
            return Err(ServeError::invalid("features.shape", found, expected));
        }
        TensorView::new(&tensor).map_err(|error| ServeError::at("features", error))?;
        Ok((tensor, rows as usize))
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
