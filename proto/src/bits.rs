//! Ids and counts packed at as few bits as their range needs.
//!
//! Values follow one another in a single run of bits, least significant bit first, without padding
//! between rows; the unused bits of the last byte are 0. The width follows from the range alone, so
//! it never travels.

use crate::dtype::first_refused;

/// Why values cannot be packed or unpacked. The text continues the name of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BitsError {
    /// A value outside its range.
    #[error("value {index} is {value}; must be below {below}")]
    Value {
        /// Position of the value.
        index: usize,
        /// The value.
        value: u32,
        /// First value past the range.
        below: u32,
    },
    /// Too few bytes, or too many.
    #[error("has {bytes} bytes; {count} values of {bits} bits need exactly {expected}")]
    Length {
        /// Bytes there are.
        bytes: usize,
        /// Values there should be.
        count: usize,
        /// Bits of each value.
        bits: u32,
        /// Bytes there should be.
        expected: u128,
    },
    /// The last byte is not filled with zeros.
    #[error("has bits set after its last value; they must be 0")]
    Padding,
}

/// Bits of an id among `classes`: ceil(log2(classes)), at least 1.
pub const fn id_bits(classes: u32) -> u32 {
    let bits = u32::BITS - classes.saturating_sub(1).leading_zeros();
    if bits == 0 { 1 } else { bits }
}

/// Bytes of `count` packed values, each below `below`.
pub const fn packed_len(count: usize, below: u32) -> u128 {
    (count as u128 * id_bits(below) as u128).div_ceil(8)
}

/// Packs `values` at `id_bits(below)` bits each.
///
/// # Errors
///
/// If a value is not below `below`.
pub fn pack(values: &[u32], below: u32) -> Result<Vec<u8>, BitsError> {
    check_range(values, below)?;
    let bits = id_bits(below);
    let mut packed = Vec::with_capacity((values.len() * bits as usize).div_ceil(8) + 4);
    // Fewer than 32 bits wait in `pending` between values, so one more value always fits.
    let (mut pending, mut pending_bits) = (0_u64, 0);
    for value in values {
        pending |= u64::from(*value) << pending_bits;
        pending_bits += bits;
        if pending_bits >= 32 {
            packed.extend_from_slice(&pending.to_le_bytes()[..4]);
            pending >>= 32;
            pending_bits -= 32;
        }
    }
    packed.extend_from_slice(&pending.to_le_bytes()[..pending_bits.div_ceil(8) as usize]);
    Ok(packed)
}

/// Unpacks `count` values, each below `below`.
///
/// # Errors
///
/// If `packed` has any other length than [`packed_len`], before anything is allocated; if a value
/// is out of range; if an unused bit is set.
pub fn unpack(packed: &[u8], count: usize, below: u32) -> Result<Vec<u32>, BitsError> {
    let bits = id_bits(below);
    let expected = packed_len(count, below);
    if packed.len() as u128 != expected {
        return Err(BitsError::Length { bytes: packed.len(), count, bits, expected });
    }
    let (words, rest) = packed.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let mut words = words.iter().chain([&last]);

    let mask = (1_u64 << bits) - 1;
    let mut values = Vec::with_capacity(count);
    let (mut pending, mut pending_bits) = (0_u64, 0);
    for _ in 0..count {
        if pending_bits < bits {
            let word = words.next().map_or(0, |word| u32::from_le_bytes(*word));
            pending |= u64::from(word) << pending_bits;
            pending_bits += 32;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the mask leaves at most 32 bits")]
        values.push((pending & mask) as u32);
        pending >>= bits;
        pending_bits -= bits;
    }
    if pending != 0 || words.any(|word| *word != [0; 4]) {
        return Err(BitsError::Padding);
    }
    check_range(&values, below)?;
    Ok(values)
}

fn check_range(values: &[u32], below: u32) -> Result<(), BitsError> {
    match first_refused(values, |value| value < below) {
        None => Ok(()),
        Some(index) => Err(BitsError::Value { index, value: values[index], below }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn width_is_the_logarithm_rounded_up() {
        let cases = [
            (1, 1),
            (2, 1),
            (3, 2),
            (4, 2),
            (5, 3),
            (10, 4),
            (151_936, 18),
            (1 << 31, 31),
            ((1 << 31) + 1, 32),
            (u32::MAX, 32),
        ];
        for (classes, bits) in cases {
            assert_eq!(id_bits(classes), bits, "{classes} classes");
        }
    }

    /// The layout by hand: 5, 2, 7 in 3 bits each are 0b111_010_101 from the least significant end.
    #[test]
    fn the_first_value_is_in_the_lowest_bits() {
        assert_eq!(pack(&[5, 2, 7], 8), Ok(vec![0b1101_0101, 0b1]));
    }

    #[test]
    fn refuses_values_out_of_range() {
        let error = BitsError::Value { index: 1, value: 5, below: 5 };
        assert_eq!(pack(&[4, 5], 5), Err(error));
        // 5 fits in the 3 bits that five classes need, and is still not a class.
        assert_eq!(unpack(&pack(&[4, 5], 8).unwrap(), 2, 5), Err(error));
    }

    #[test]
    fn refuses_bits_after_the_last_value() {
        assert_eq!(unpack(&[0b0000_0101], 1, 8), Ok(vec![5]));
        assert_eq!(unpack(&[0b1000_0101], 1, 8), Err(BitsError::Padding));
    }

    #[test]
    fn refuses_a_count_that_the_bytes_do_not_back() {
        let error = unpack(&[0; 4], usize::MAX, u32::MAX).unwrap_err();
        assert!(matches!(error, BitsError::Length { bytes: 4, .. }), "{error}");
        assert!(unpack(&[0; 4], 3, 8).is_err(), "too many bytes");
    }

    proptest! {
        /// Unpacking returns what was packed, whatever the width, in exactly the documented length.
        #[test]
        fn round_trip(
            (below, values) in (0_u32..32, any::<u32>())
                .prop_map(|(shift, below)| (below >> shift).max(1))
                .prop_flat_map(|below| (Just(below), prop::collection::vec(0..below, 0..70)))
        ) {
            let packed = pack(&values, below).unwrap();
            prop_assert_eq!(packed.len() as u128, packed_len(values.len(), below));
            prop_assert_eq!(unpack(&packed, values.len(), below).unwrap(), values);
        }
    }
}
