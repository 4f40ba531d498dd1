//! What two rows must have in common to share an output.

use sha2::{Digest as _, Sha256};
use stillhouse_proto::v1::DType;

/// SHA-256 of a teacher and the content of a row. As wide as that: clients need not trust each
/// other, and two rows with one key would give one of them the other's labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) [u8; 32]);

/// Separates keys from any other use of SHA-256, and from a later definition.
const DOMAIN: &[u8] = b"stillhouse row 1";

/// Makes the keys of one teacher's rows.
#[derive(Clone, Debug)]
pub(crate) struct Keyer {
    /// The hash of all that comes before a row.
    begun: Sha256,
}

/// What kind of row follows; the first byte of it.
#[repr(u8)]
enum Row {
    Features = 0,
    AllLabelled = 1,
    SomeLabelled = 2,
}

impl Keyer {
    /// Of a teacher, and of this version of the server: another one may round differently.
    pub(crate) fn new(fingerprint: &[u8]) -> Self {
        let mut begun = Sha256::new();
        for part in [DOMAIN, env!("CARGO_PKG_VERSION").as_bytes(), fingerprint] {
            begun.update((part.len() as u64).to_le_bytes());
            begun.update(part);
        }
        Self { begun }
    }

    fn finish(hash: Sha256) -> Key {
        Key(hash.finalize().into())
    }

    /// A row of features, as it came: the same numbers in another dtype are another row.
    pub(crate) fn features(&self, dtype: DType, row: &[u8]) -> Key {
        let mut hash = self.begun.clone();
        hash.update([Row::Features as u8]);
        hash.update((dtype as i32).to_le_bytes());
        hash.update(row);
        Self::finish(hash)
    }

    /// A sequence of token ids, 4 bytes each, and which of its positions are labelled; none: all,
    /// or the sequence as a whole.
    pub(crate) fn sequence(&self, ids: &[u8], labelled: Option<&[bool]>) -> Key {
        let mut hash = self.begun.clone();
        let kind = if labelled.is_some() { Row::SomeLabelled } else { Row::AllLabelled };
        hash.update([kind as u8]);
        hash.update((ids.len() as u64).to_le_bytes());
        hash.update(ids);
        if let Some(labelled) = labelled {
            let marks: Vec<u8> = labelled.iter().map(|&labelled| u8::from(labelled)).collect();
            hash.update(marks);
        }
        Self::finish(hash)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn whatever_changes_an_output_changes_the_key() {
        let (one, other) = (Keyer::new(&[1; 32]), Keyer::new(&[2; 32]));
        let row = [0, 0, 128, 63];
        let keys = [
            one.features(DType::F32, &row),
            other.features(DType::F32, &row),
            one.features(DType::U8, &row),
            one.features(DType::F32, &[0; 4]),
            one.features(DType::F32, &[0; 8]),
            one.sequence(&row, None),
            one.sequence(&row, Some(&[true])),
            one.sequence(&[0; 8], Some(&[true, false])),
            one.sequence(&[0; 8], Some(&[false, true])),
            one.sequence(&[0; 8], None),
        ];
        let distinct: HashSet<Key> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(one.features(DType::F32, &row), keys[0]);
    }
}
