//! The rows of a request, from when they were read until the device's input is made of them.

use std::sync::Arc;

use bytes::Bytes;
use stillhouse_proto::v1::{Sequences, Tensor};

use crate::{error::ServeError, units::JobInput, validate::Contract};

/// The input of an accepted request, as it came.
#[derive(Debug)]
pub(crate) enum AcceptedInput {
    /// `[rows, width]`.
    Features(Tensor),
    Sequences(Sequences),
}

/// A request's rows, which input for the device can be made of.
pub(crate) struct Rows {
    pub(crate) contract: Arc<Contract>,
    pub(crate) input: AcceptedInput,
}

impl Rows {
    /// The input of some of the units.
    pub(crate) fn of(&self, units: &[usize]) -> Result<JobInput, ServeError> {
        self.contract.input(&self.input, units)
    }

    /// The same in memory of its own: as they are read they keep the whole message that they came in, which
    /// is not all counted as held.
    pub(crate) fn detached(self) -> Self {
        let own = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        let input = match self.input {
            AcceptedInput::Features(tensor) => {
                AcceptedInput::Features(Tensor { data: own(&tensor.data), ..tensor })
            }
            AcceptedInput::Sequences(sequences) => AcceptedInput::Sequences(Sequences {
                token_ids: own(&sequences.token_ids),
                label_mask: own(&sequences.label_mask),
                ..sequences
            }),
        };
        Self { input, ..self }
    }
}
