//! The Stillhouse wire contract: what a teacher and its students say to each other.
//!
//! * [`v1`]: the messages, client and server of `distill/v1/teacher.proto`, generated.
//! * [`labels`]: soft labels as plain numbers, to and from [`v1::Labels`], in all five encodings.
//! * [`tensor`]: [`TensorView`], a checked view of a [`v1::Tensor`] that copies nothing.
//! * [`request`]: id lists and token sequences, packed by a client and checked by a server.
//! * [`checksum`]: what tells labels of a request from what became of them on the way.
//! * [`limits`]: the memory that a message can take, and the bytes of an answer.
//! * [`dtype`] and [`bits`]: element types and bit packing, which the others stand on.
//!
//! Whatever arrives from a peer is checked in full before memory is allocated for it: a length that
//! a message declares counts only once the bytes are there to back it. Errors name the field, its
//! value and the accepted range.
//!
//! ```
//! use stillhouse_proto::{LabelBatch, SoftLabels, decode, encode, v1};
//!
//! // One row over four classes at temperature 2: the two most probable classes, and the rest.
//! let batch = LabelBatch {
//!     temperature: 2.0,
//!     rows: 1,
//!     classes: 4,
//!     labels: SoftLabels::TopK {
//!         k: 2,
//!         ids: vec![3, 0],
//!         log_probabilities: vec![0.5_f32.ln(), 0.25_f32.ln()],
//!         log_tail_mass: vec![0.25_f32.ln()],
//!     },
//! };
//! let wire: v1::Labels = encode(&batch, v1::DType::F32)?;
//! assert_eq!(decode(&wire)?, batch);
//! # Ok::<(), stillhouse_proto::CodecError>(())
//! ```

pub mod bits;
pub mod checksum;
pub mod dtype;
pub mod labels;
pub mod limits;
pub mod request;
pub mod tensor;

pub use labels::{CodecError, LabelBatch, SoftLabels, decode, encode};
pub use request::SequencesView;
pub use tensor::{TensorError, TensorView};

/// Messages, client and server of the package `distill.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("distill.v1");

    /// Encoded `google.protobuf.FileDescriptorSet` of the package, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/distill_v1_descriptor.bin"));
}
