//! Slices out of candle's tensors.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, WithDType};

/// The elements of `storage` that `layout` covers, which must be contiguous.
pub(crate) fn contiguous<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
    op: &'static str,
) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("{op}: operand of shape {:?} is not contiguous", layout.shape());
    };
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// Calls `body` with the elements of a contiguous tensor on the CPU, without copying them.
pub(crate) fn with_elements<T: WithDType, R>(
    tensor: &Tensor,
    op: &'static str,
    body: impl FnOnce(&[T]) -> R,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(body(contiguous(storage, layout, op)?)),
        _ => candle_core::bail!("{op}: only the CPU is supported"),
    }
}

/// An error for an element type that the ops are not written for.
pub(crate) fn unsupported<R>(op: &'static str, dtype: DType) -> Result<R> {
    candle_core::bail!("{op}: dtype {dtype:?} is not supported; expected F32 or F64")
}
