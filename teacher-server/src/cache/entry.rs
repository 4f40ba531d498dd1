//! One row of the disk tier, in bytes: its whole key, its output and a checksum of both.
//!
//! | bytes | what |
//! |---|---|
//! | 32 | the key |
//! | 4 n | the output: n f32, little-endian |
//! | 16 | the first half of SHA-256 over all before |

use sha2::{Digest as _, Sha256};

use super::Key;

const KEY: usize = 32;
const CHECKSUM: usize = 16;

/// Why bytes are not the entry of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// They are not what was written.
    Corrupt,
    /// They are an entry of another key that shares this one's place.
    OtherKey,
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut half = [0; CHECKSUM];
    half.copy_from_slice(&Sha256::digest(bytes)[..CHECKSUM]);
    half
}

pub(crate) fn encode(key: &Key, output: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(KEY + size_of_val(output) + CHECKSUM);
    bytes.extend_from_slice(&key.0);
    output.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    bytes.extend_from_slice(&checksum(&bytes));
    bytes
}

/// The output of `key` that the bytes hold.
pub(crate) fn decode(key: &Key, bytes: &[u8]) -> Result<Vec<f32>, Unusable> {
    let (body, sum) = bytes.split_last_chunk().ok_or(Unusable::Corrupt)?;
    if *sum != checksum(body) {
        return Err(Unusable::Corrupt);
    }
    let (found, values) = body.split_first_chunk::<KEY>().ok_or(Unusable::Corrupt)?;
    if *found != key.0 {
        return Err(Unusable::OtherKey);
    }
    let (values, rest) = values.as_chunks();
    if !rest.is_empty() {
        return Err(Unusable::Corrupt);
    }
    Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// Reads bytes as an entry, and as one whose checksum is right.
pub(crate) fn fuzzed(bytes: &[u8]) {
    let key = Key(*bytes.first_chunk().unwrap_or(&[0; KEY]));
    drop(decode(&key, bytes));
    let right = [bytes, &checksum(bytes)].concat();
    if let Ok(output) = decode(&key, &right) {
        assert_eq!(encode(&key, &output), right);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEYED: Key = Key([7; 32]);

    #[test]
    fn an_entry_of_another_key_is_none_of_this_one() {
        let bytes = encode(&Key([8; 32]), &[1.0]);
        assert_eq!(decode(&KEYED, &bytes), Err(Unusable::OtherKey));
    }

    proptest! {
        /// What was written is read; what is shorter, longer or differs in any bit is not.
        #[test]
        fn an_entry_is_read_as_it_was_written_or_not_at_all(
            output in prop::collection::vec(any::<f32>(), 0..40),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u32,
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = encode(&KEYED, &output);
            let read = decode(&KEYED, &bytes).unwrap();
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&read), bits(&output));
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1_u8 << bit;
            prop_assert_eq!(decode(&KEYED, &flipped), Err(Unusable::Corrupt));
            prop_assert_eq!(decode(&KEYED, &bytes[..cut.index(bytes.len())]), Err(Unusable::Corrupt));
            let longer = [&bytes[..], &[0]].concat();
            prop_assert_eq!(decode(&KEYED, &longer), Err(Unusable::Corrupt));
        }

        /// Whatever the bytes: no panic.
        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&KEYED, &bytes);
        }
    }
}
