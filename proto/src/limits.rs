//! What messages can cost: memory to decode one, and bytes of an answer.
//!
//! A limit on a message's bytes bounds the memory that it decodes to, but not one to one. `prost`
//! makes an element of a repeated field from as little as a byte or two, and an element of a vector
//! takes the size of its type; while the vector grows, the old half of it is held too. What is
//! decoded from bytes fields is a view of the message and takes nothing more.
//!
//! [`REQUEST_MEMORY_PER_BYTE`], [`RESPONSE_MEMORY_PER_BYTE`] and [`DESCRIBE_MEMORY_PER_BYTE`] are the
//! worst a peer can do, held by `tests/memory.rs` to messages that do it. So:
//!
//! * whoever runs a **server** that takes messages of up to `b` bytes sets aside
//!   [`request_memory(b)`](request_memory) for each that it may decode at once, or picks `b` by
//!   [`request_bytes_within`] the memory that there is;
//! * a **client** takes no more than an honest answer needs, [`response_bytes`] of its largest
//!   request, and trusts its teacher with [`response_memory`] of that. A description is at most
//!   [`MAX_DESCRIBE_BYTES`] long.

use crate::{
    bits::id_bits,
    v1::{DType, DenseKind, LabelRequest, encoding::Kind},
};

/// Bytes of memory that decoding holds at most for each byte of a `LabelRequest`, a
/// `LabelStreamRequest` or any smaller request: an element of `Tensor.shape` is 8 bytes and travels
/// as 1, and vectors hold up to 3 times their content while they grow.
pub const REQUEST_MEMORY_PER_BYTE: u64 = 24;

/// As [`REQUEST_MEMORY_PER_BYTE`], of a `LabelResponse`, a `LabelStreamResponse` or a piece of a head:
/// `Labels` with an empty payload is 4 bytes and becomes 264 of memory at most.
pub const RESPONSE_MEMORY_PER_BYTE: u64 = 66;

/// As [`REQUEST_MEMORY_PER_BYTE`], of a `DescribeResponse`: an empty `EnsembleMember` is 2 bytes and
/// becomes 168 of memory at most.
pub const DESCRIBE_MEMORY_PER_BYTE: u64 = 84;

/// Most bytes of an honest `DescribeResponse`: 64 members of at most 296 bytes each, and the rest.
pub const MAX_DESCRIBE_BYTES: u64 = 1 << 16;

/// Most models that answer as one teacher.
pub const MAX_MEMBERS: usize = 64;

/// Most bytes of `DescribeResponse.name` and of `EnsembleMember.name`.
pub const MAX_NAME_BYTES: usize = 256;

/// And of a message as such, whatever its length: vectors start with room for a few elements.
pub const MEMORY_PER_MESSAGE: u64 = 4096;

/// Most bytes of `RowError.message`.
pub const MAX_ROW_ERROR_BYTES: usize = 256;

/// Most bytes of `LabelError.message`.
pub const MAX_ERROR_BYTES: usize = 1024;

/// Most memory that decoding a request of up to `message_bytes` holds, beside the message itself.
pub const fn request_memory(message_bytes: u64) -> u64 {
    memory(message_bytes, REQUEST_MEMORY_PER_BYTE)
}

/// Most memory that decoding a response of up to `message_bytes` holds, beside the message itself.
pub const fn response_memory(message_bytes: u64) -> u64 {
    memory(message_bytes, RESPONSE_MEMORY_PER_BYTE)
}

/// As [`request_memory`], of a description.
pub const fn describe_memory(message_bytes: u64) -> u64 {
    memory(message_bytes, DESCRIBE_MEMORY_PER_BYTE)
}

/// Largest request whose decoding, with the message itself, is sure to hold no more than `memory`
/// bytes.
pub const fn request_bytes_within(memory: u64) -> u64 {
    memory.saturating_sub(MEMORY_PER_MESSAGE) / (REQUEST_MEMORY_PER_BYTE + 1)
}

/// As [`request_bytes_within`], of a response.
pub const fn response_bytes_within(memory: u64) -> u64 {
    memory.saturating_sub(MEMORY_PER_MESSAGE) / (RESPONSE_MEMORY_PER_BYTE + 1)
}

const fn memory(message_bytes: u64, per_byte: u64) -> u64 {
    message_bytes.saturating_mul(per_byte).saturating_add(MEMORY_PER_MESSAGE)
}

/// Everything of a response, or of the labels at one temperature, but arrays and row errors: tags,
/// lengths, numbers, shapes.
const FRAME: u64 = 160;

/// Most bytes of an honest answer to `request`, with `rows` labelled rows, by a teacher of `classes`
/// classes and hidden states of `hidden_size`: a `LabelResponse`, or a `LabelStreamResponse` that
/// holds one or an error. `None` where the request names no encoding.
pub fn response_bytes(
    request: &LabelRequest,
    rows: u64,
    classes: u32,
    hidden_size: u32,
) -> Option<u64> {
    let times = request.temperatures.len() as u64;
    // Every row has its labels or an error; this allows for both. An error's frame is 16 bytes.
    let errors = rows.saturating_mul(MAX_ROW_ERROR_BYTES as u64 + 16);
    let bits = u64::from(id_bits(classes));
    let value = |dtype| match DType::try_from(dtype) {
        Ok(DType::F16 | DType::Bf16) => 2,
        _ => 4,
    };
    // Bits of a row's labels at one temperature, and at how many these are sent.
    let (row_bits, times) = match request.encoding.as_ref()?.kind.as_ref()? {
        Kind::Dense(dense) => {
            let once = dense.kind() == DenseKind::Logits;
            (8 * value(dense.dtype) * u64::from(classes), if once { 1 } else { times })
        }
        Kind::TopK(top_k) => {
            (u64::from(top_k.k.min(classes)) * (bits + 8 * value(top_k.dtype)) + 32, times)
        }
        Kind::Ids(ids) => {
            (u64::from(ids.ids_per_row.min(classes)) * 8 * value(ids.dtype) + 32, times)
        }
        Kind::Sampled(sampled) => {
            let draws = sampled.draws.min(u32::from(u16::MAX));
            let count_bits = u64::from(id_bits(draws + 1));
            (u64::from(draws.min(classes)) * (bits + count_bits) + 16, times)
        }
        Kind::Hidden(hidden) => (8 * value(hidden.dtype) * u64::from(hidden_size), 1),
    };
    let labels = rows.saturating_mul(row_bits).div_ceil(8).saturating_add(FRAME);
    let answer = labels.saturating_mul(times).saturating_add(errors).saturating_add(FRAME);
    Some(answer.max(MAX_ERROR_BYTES as u64 + FRAME))
}
