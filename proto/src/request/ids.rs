//! The ids that an [`IdsEncoding`] asks for.

use bytes::Bytes;

use super::byte_length;
use crate::{
    dtype::{first_refused, u32_from_bytes, u32_to_bytes},
    labels::{CodecError, duplicate, refuse},
    v1::IdsEncoding,
};

/// Ids as `IdsEncoding.ids` and `Sequences.token_ids` carry them: `u32`, little-endian.
pub fn pack_ids(ids: &[u32]) -> Bytes {
    u32_to_bytes(ids).into()
}

impl IdsEncoding {
    /// The ids, `[rows, ids_per_row]`, for a request of `rows` labelled rows over `classes` classes.
    ///
    /// # Errors
    ///
    /// If `ids_per_row` is not 1 to `classes`; if there are other than `rows * ids_per_row` ids; if
    /// one is not below `classes`, or is in a row twice.
    pub fn unpack(&self, rows: usize, classes: u32) -> Result<Vec<u32>, CodecError> {
        if self.ids_per_row == 0 || self.ids_per_row > classes {
            let accepted = format!("1 to the {classes} classes");
            return Err(refuse("ids_per_row", self.ids_per_row, accepted));
        }
        let per_row = self.ids_per_row as usize;
        let expected = rows as u128 * per_row as u128 * 4;
        let of = "4 for each of rows * ids_per_row ids";
        byte_length("ids", self.ids.len(), expected, of)?;
        let ids = u32_from_bytes(&self.ids);
        ids_below("ids", &ids, classes)?;
        let mut sorted = Vec::new();
        for (row, ids) in ids.chunks(per_row).enumerate() {
            if let Some(id) = duplicate(ids, &mut sorted) {
                let value = format!("{id} twice");
                return Err(refuse(format!("ids of row {row}"), value, "distinct"));
            }
        }
        Ok(ids)
    }
}

fn ids_below(field: &str, ids: &[u32], below: u32) -> Result<(), CodecError> {
    match first_refused(ids, |id| id < below) {
        None => Ok(()),
        Some(index) => {
            Err(refuse(format!("{field}[{index}]"), ids[index], format!("0 to {}", below - 1)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_ids_are_refused() {
        let unpack = |ids_per_row, ids: Bytes| {
            let encoding = IdsEncoding { ids_per_row, ids, dtype: 0 };
            encoding.unpack(2, 10).map_err(|error| error.to_string())
        };
        assert_eq!(unpack(2, pack_ids(&[1, 9, 9, 1])), Ok(vec![1, 9, 9, 1]));
        let length = "bytes; must be 16: 4 for each of rows * ids_per_row ids";
        for (ids_per_row, ids, expected) in [
            (0, pack_ids(&[]), "ids_per_row is 0; must be 1 to the 10 classes".to_owned()),
            (11, pack_ids(&[]), "ids_per_row is 11; must be 1 to the 10 classes".to_owned()),
            (2, pack_ids(&[1, 9, 9]), format!("length of ids is 12 {length}")),
            (2, pack_ids(&[1, 9, 9, 1]).slice(..15), format!("length of ids is 15 {length}")),
            (2, pack_ids(&[1, 9, 10, 1]), "ids[2] is 10; must be 0 to 9".to_owned()),
            (2, pack_ids(&[1, 9, 3, 3]), "ids of row 1 is 3 twice; must be distinct".to_owned()),
        ] {
            assert_eq!(unpack(ids_per_row, ids), Err(expected));
        }
    }
}
