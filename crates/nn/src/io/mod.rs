//! Files: weights in safetensors format, and writing that is all or nothing.

mod atomic;
mod safetensors;

pub use self::safetensors::{Tensors, read_tensors, tensor_bytes, write_tensors};
pub(crate) use self::safetensors::{check_finite, collect_tensors, parse_tensors};
pub use atomic::write_atomic;
