//! `LabelResponse.checksum`: ties an answer to its request, and both to what they were when they were
//! sent.
//!
//! TCP's own checksum is 16 bits wide, and a proxy or a broken memory is not covered by it. TLS covers
//! the way between its ends; this covers all of it, and costs about as much as reading the bytes. It is
//! no protection from somebody who changes them on purpose.

use std::hash::Hasher as _;

use twox_hash::XxHash64;

use crate::v1::{
    LabelRequest, LabelResponse, Labels, Tensor, encoding::Kind, label_request::Inputs,
    labels::Payload,
};

/// The part of a checksum that depends on the request.
#[derive(Clone, Debug)]
pub struct RequestSum(Sum);

#[derive(Clone, Debug)]
struct Sum(XxHash64);

impl Sum {
    fn number(&mut self, number: impl Into<u64>) {
        self.0.write(&number.into().to_le_bytes());
    }

    /// An enum's value, or a count.
    fn value(&mut self, value: i32) {
        self.number(value as u32);
    }

    fn float(&mut self, float: f32) {
        self.number(float.to_bits());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.write(bytes);
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.value(tensor.dtype);
        self.number(tensor.shape.len() as u64);
        tensor.shape.iter().for_each(|size| self.number(*size));
        self.bytes(&tensor.data);
    }

    /// A field that is not set counts as one that is empty.
    fn optional(&mut self, tensor: Option<&Tensor>) {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => self.tensor(&Tensor::default()),
        }
    }

    fn labels(&mut self, labels: &Labels) {
        self.float(labels.temperature);
        self.number(labels.rows);
        self.number(labels.classes);
        match &labels.payload {
            None => self.number(0_u64),
            Some(Payload::Dense(dense)) => {
                self.number(4_u64);
                self.value(dense.kind);
                self.optional(dense.values.as_ref());
            }
            Some(Payload::TopK(top_k)) => {
                self.number(5_u64);
                self.number(top_k.k);
                self.bytes(&top_k.packed_ids);
                self.optional(top_k.log_probabilities.as_ref());
                self.optional(top_k.log_tail_mass.as_ref());
            }
            Some(Payload::Ids(ids)) => {
                self.number(6_u64);
                self.optional(ids.log_probabilities.as_ref());
                self.optional(ids.log_tail_mass.as_ref());
            }
            Some(Payload::Sampled(sampled)) => {
                self.number(7_u64);
                self.number(sampled.draws);
                self.bytes(&sampled.distinct);
                self.bytes(&sampled.packed_ids);
                self.bytes(&sampled.packed_counts);
            }
            Some(Payload::Hidden(hidden)) => {
                self.number(8_u64);
                self.optional(hidden.states.as_ref());
            }
        }
    }
}

impl RequestSum {
    /// Of a request, as it is sent or as it was read.
    pub fn new(request: &LabelRequest) -> Self {
        let mut sum = Sum(XxHash64::with_seed(0));
        sum.number(request.id);
        sum.bytes(request.client.as_bytes());
        match &request.inputs {
            None => sum.number(0_u64),
            Some(Inputs::Features(features)) => {
                sum.number(3_u64);
                sum.tensor(features);
            }
            Some(Inputs::Sequences(sequences)) => {
                sum.number(4_u64);
                sum.number(sequences.lengths.len() as u64);
                sequences.lengths.iter().for_each(|length| sum.number(*length));
                sum.bytes(&sequences.token_ids);
                sum.bytes(&sequences.label_mask);
            }
        }
        sum.number(request.temperatures.len() as u64);
        request.temperatures.iter().for_each(|temperature| sum.float(*temperature));
        match request.encoding.as_ref().and_then(|encoding| encoding.kind.as_ref()) {
            None => sum.number(0_u64),
            Some(Kind::Dense(dense)) => {
                sum.number(1_u64);
                sum.value(dense.kind);
                sum.value(dense.dtype);
            }
            Some(Kind::TopK(top_k)) => {
                sum.number(2_u64);
                sum.number(top_k.k);
                sum.value(top_k.dtype);
            }
            Some(Kind::Ids(ids)) => {
                sum.number(3_u64);
                sum.number(ids.ids_per_row);
                sum.bytes(&ids.ids);
                sum.value(ids.dtype);
            }
            Some(Kind::Sampled(sampled)) => {
                sum.number(4_u64);
                sum.number(sampled.draws);
                sum.number(sampled.seed);
            }
            Some(Kind::Hidden(hidden)) => {
                sum.number(5_u64);
                sum.value(hidden.dtype);
            }
        }
        sum.number(request.timeout_ms);
        sum.value(request.ensemble_rule);
        Self(sum)
    }

    /// The checksum of an answer to the request, whatever stands in its `checksum`.
    pub fn of_response(&self, response: &LabelResponse) -> u64 {
        let mut sum = self.0.clone();
        sum.bytes(&response.fingerprint);
        sum.number(response.labels.len() as u64);
        response.labels.iter().for_each(|labels| sum.labels(labels));
        sum.number(response.row_errors.len() as u64);
        for error in &response.row_errors {
            sum.number(error.row);
            sum.bytes(error.message.as_bytes());
        }
        sum.0.finish().max(1)
    }

    /// Whether an answer is one to the request, and both arrived as they were sent. Of one without a
    /// checksum it is not known.
    pub fn agrees(&self, response: &LabelResponse) -> Option<bool> {
        (response.checksum != 0).then(|| self.of_response(response) == response.checksum)
    }
}
