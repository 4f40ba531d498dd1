//! Element types: sizes, names, and conversion between `f32` and little-endian bytes.
//!
//! Narrowing rounds to the nearest value, ties to even (IEEE 754's default). The loops are over
//! whole arrays of fixed-size chunks, so that the compiler vectorises them; on a little-endian
//! machine those for `f32` are plain copies.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::v1::DType;

/// Elements converted or checked at a time; small enough to stay in the first-level cache.
const CHUNK: usize = 256;

impl DType {
    /// Bytes of one element; `None` for `Unspecified`.
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::Unspecified => None,
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::U8 => Some(1),
        }
    }

    /// Short name, as recipes and error messages write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
        }
    }

    /// Largest `f32` that does not round to infinity in this type; `None` where `f32` values cannot
    /// be written as it (`U8`, `Unspecified`).
    pub const fn largest(self) -> Option<f32> {
        match self {
            Self::F32 => Some(f32::MAX),
            // One step below the middle between the largest finite value and what would follow it:
            // 65,520 in binary16, and 0x7f7f_8000 in bfloat16.
            Self::F16 => Some(65_519.996),
            Self::Bf16 => Some(f32::from_bits(0x7f7f_7fff)),
            Self::U8 | Self::Unspecified => None,
        }
    }
}

/// Appends `values` to `out`, rounded to `dtype`, without a check of their range.
///
/// Appends nothing for a type that `f32` values cannot be written as ([`DType::largest`]).
pub fn extend_from_f32(out: &mut Vec<u8>, dtype: DType, values: &[f32]) {
    match dtype {
        DType::F32 => extend_words(out, values, f32::to_le_bytes),
        DType::F16 => {
            // The conversion of whole slices uses the processor's instruction where there is one.
            let mut halves = [f16::ZERO; CHUNK];
            out.reserve(values.len() * 2);
            for chunk in values.chunks(CHUNK) {
                let halves = &mut halves[..chunk.len()];
                halves.convert_from_f32_slice(chunk);
                extend_words(out, halves, f16::to_le_bytes);
            }
        }
        DType::Bf16 => extend_words(out, values, |value| bf16::from_f32(value).to_le_bytes()),
        DType::U8 | DType::Unspecified => {}
    }
}

/// The elements of `bytes`, little-endian, widened to `f32`; `U8` as 0 to 255.
///
/// A last element that is cut short is left out, and `Unspecified` has no elements.
pub fn to_f32(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => words(bytes, f32::from_le_bytes),
        DType::F16 => {
            let mut values = vec![0.0; bytes.len() / 2];
            let mut halves = [f16::ZERO; CHUNK];
            for (values, bytes) in values.chunks_mut(CHUNK).zip(bytes.chunks(2 * CHUNK)) {
                let halves = &mut halves[..values.len()];
                for (half, word) in halves.iter_mut().zip(bytes.as_chunks().0) {
                    *half = f16::from_le_bytes(*word);
                }
                halves.convert_to_f32_slice(values);
            }
            values
        }
        DType::Bf16 => words(bytes, |word| bf16::from_le_bytes(word).to_f32()),
        DType::U8 => bytes.iter().map(|byte| f32::from(*byte)).collect(),
        DType::Unspecified => Vec::new(),
    }
}

/// Little-endian bytes of `values`, 4 for each.
pub fn u32_to_bytes(values: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    extend_words(&mut out, values, u32::to_le_bytes);
    out
}

/// Little-endian `u32`s of `bytes`; a last one that is cut short is left out.
pub fn u32_from_bytes(bytes: &[u8]) -> Vec<u32> {
    words(bytes, u32::from_le_bytes)
}

/// Little-endian bytes of `values`, 2 for each.
pub(crate) fn u16_to_bytes(values: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    extend_words(&mut out, values, u16::to_le_bytes);
    out
}

/// Little-endian `u16`s of `bytes`; a last one that is cut short is left out.
pub(crate) fn u16_from_bytes(bytes: &[u8]) -> Vec<u16> {
    words(bytes, u16::from_le_bytes)
}

/// Index of the first value that `accept` refuses.
///
/// Whole chunks are tested without an early exit: that is what lets the test vectorise.
pub(crate) fn first_refused<T: Copy>(values: &[T], accept: impl Fn(T) -> bool) -> Option<usize> {
    let all = |chunk: &[T]| chunk.iter().fold(true, |all, value| all & accept(*value));
    let chunk = values.chunks(CHUNK).position(|chunk| !all(chunk))?;
    let start = chunk * CHUNK;
    values[start..].iter().position(|value| !accept(*value)).map(|index| start + index)
}

fn extend_words<T: Copy, const N: usize>(
    out: &mut Vec<u8>,
    values: &[T],
    word: impl Fn(T) -> [u8; N],
) {
    let start = out.len();
    out.resize(start + values.len() * N, 0);
    for (bytes, value) in out[start..].as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = word(*value);
    }
}

fn words<T, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|word| value(*word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(dtype: DType, values: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        extend_from_f32(&mut bytes, dtype, values);
        assert_eq!(bytes.len(), values.len() * dtype.size().unwrap());
        to_f32(dtype, &bytes)
    }

    #[test]
    fn f32_keeps_every_bit() {
        let values = [0.0, -0.0, 1.0, f32::MIN_POSITIVE / 8.0, f32::MAX, f32::NEG_INFINITY];
        let back = round_trip(DType::F32, &values);
        assert_eq!(back.map_bits(), values.to_vec().map_bits());
    }

    trait MapBits {
        fn map_bits(&self) -> Vec<u32>;
    }

    impl MapBits for Vec<f32> {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|value| value.to_bits()).collect()
        }
    }

    /// A tie goes to the even neighbour, and anything past it to the nearest.
    #[test]
    fn narrowing_rounds_to_nearest_even() {
        let step = f32::powi(2.0, -10);
        let values = [1.0 + 0.5 * step, 1.0 + 0.500_1 * step, 1.0 + 1.5 * step];
        assert_eq!(round_trip(DType::F16, &values), [1.0, 1.0 + step, 1.0 + 2.0 * step]);

        let step = f32::powi(2.0, -7);
        let values = [1.0 + 0.5 * step, 1.0 + 0.500_1 * step, 1.0 + 1.5 * step];
        assert_eq!(round_trip(DType::Bf16, &values), [1.0, 1.0 + step, 1.0 + 2.0 * step]);
    }

    /// `largest` is the boundary: the next `f32` above it is infinite in the narrow type.
    #[test]
    fn largest_is_the_last_finite_value() {
        for dtype in [DType::F16, DType::Bf16] {
            let largest = dtype.largest().unwrap();
            let values = [largest, -largest, largest.next_up()];
            let back = round_trip(dtype, &values);
            assert!(back[0].is_finite() && back[1].is_finite(), "{back:?}");
            assert_eq!(back[2], f32::INFINITY, "{}", dtype.name());
        }
    }

    /// Lengths around the chunk size meet both the whole chunks and the remainder.
    #[test]
    fn chunks_meet_without_a_seam() {
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7] {
            let values: Vec<f32> = (0_u16..).take(len).map(f32::from).collect();
            assert_eq!(round_trip(DType::F16, &values), values);
            assert_eq!(first_refused(&values, |value| value < 1e6), None);
            if let Some(last) = values.last().copied() {
                assert_eq!(first_refused(&values, |value| value < last), Some(len - 1));
            }
        }
    }

    #[test]
    fn bytes_widen_to_whole_numbers() {
        assert_eq!(to_f32(DType::U8, &[0, 1, 255]), [0.0, 1.0, 255.0]);
        assert!(to_f32(DType::Unspecified, &[1, 2, 3, 4]).is_empty());
    }
}
