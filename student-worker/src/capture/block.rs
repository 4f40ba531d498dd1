//! `labels.bin`: one block after another, each with the labels of one answered request.
//!
//! ```text
//! "SHLB"  epoch u32  rows u32  length u32  CRC-32C of these 16 bytes
//! row ids, u32 each
//! records, `length` bytes                  (record.rs)
//! CRC-32C of ids and records
//! ```
//!
//! All numbers are little-endian. A block is appended in one write: a process that dies leaves whole
//! blocks and at most one that is torn, at the end.

use std::io::{self, Read};

use crate::run_folder::crc32c::checksum;

const MAGIC: [u8; 4] = *b"SHLB";
/// Bytes before the row ids.
pub(super) const HEADER: u64 = 20;
const CHECKSUM: u64 = 4;

/// The labels of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The epoch that they were asked for in, from 1.
    pub(super) epoch: u32,
    /// The rows of the data set.
    pub(super) rows: Vec<u32>,
    /// Their records.
    pub(super) records: Vec<u8>,
}

impl Block {
    /// The block as it is in the file.
    ///
    /// # Errors
    /// If it has more than 2^32 - 1 bytes.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let narrow = |length: usize| {
            u32::try_from(length).map_err(|_| {
                format!(
                    "{length} bytes, expected at most 4294967295; fewer rows per \
                                      request (teacher.request_rows) have fewer"
                )
            })
        };
        let mut bytes = MAGIC.to_vec();
        for word in [self.epoch, narrow(self.rows.len())?, narrow(self.records.len())?] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(checksum(&bytes).to_le_bytes());
        let body = bytes.len();
        self.rows.iter().for_each(|row| bytes.extend(row.to_le_bytes()));
        bytes.extend_from_slice(&self.records);
        bytes.extend(checksum(&bytes[body..]).to_le_bytes());
        Ok(bytes)
    }

    /// Bytes before the records.
    pub(super) fn records_at(&self) -> u64 {
        HEADER + 4 * self.rows.len() as u64
    }

    /// Bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.records_at() + self.records.len() as u64 + CHECKSUM
    }
}

/// What is at a place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A whole block.
    Block(Block),
    /// The end of the file.
    End,
    /// The beginning of a block that was never written to its end, as far as can be told: nothing
    /// follows it.
    Torn,
    /// Something else.
    Damaged(String),
}

/// Reads the block that begins here, `left` bytes before the end of the file. Allocates no more than
/// is in the file.
///
/// # Errors
/// If the file cannot be read.
pub(super) fn read(from: &mut impl Read, left: u64) -> io::Result<Found> {
    if left == 0 {
        return Ok(Found::End);
    }
    if left < HEADER {
        return Ok(Found::Torn);
    }
    let mut header = [0; HEADER as usize];
    from.read_exact(&mut header)?;
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if header[..4] != MAGIC || checksum(&header[..16]) != word(16) {
        // A file system may have made the file longer before the bytes came.
        let unwritten = header == [0; HEADER as usize] && zeros_to_the_end(from)?;
        let damaged = || Found::Damaged("no block begins where one should".to_owned());
        return Ok(if unwritten { Found::Torn } else { damaged() });
    }
    let (rows, length) = (u64::from(word(8)), u64::from(word(12)));
    let body = 4 * rows + length + CHECKSUM;
    let left = left - HEADER;
    if body > left {
        return Ok(Found::Torn);
    }
    let mut bytes = vec![0; body as usize];
    from.read_exact(&mut bytes)?;
    let (content, found) = bytes.split_at(bytes.len() - CHECKSUM as usize);
    if checksum(content).to_le_bytes() != found {
        let damaged = || Found::Damaged("a block's checksum is not that of its bytes".to_owned());
        return Ok(if body == left { Found::Torn } else { damaged() });
    }
    let (ids, records) = content.split_at(4 * rows as usize);
    let rows = ids.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
    Ok(Found::Block(Block { epoch: word(4), rows, records: records.to_vec() }))
}

fn zeros_to_the_end(from: &mut impl Read) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) if buffer[..count].iter().all(|byte| *byte == 0) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks() -> [Block; 2] {
        [
            Block { epoch: 1, rows: vec![7, 0, 300], records: (0..12).collect() },
            Block { epoch: 2, rows: vec![5], records: vec![1, 2, 3] },
        ]
    }

    fn bytes() -> Vec<u8> {
        blocks().iter().flat_map(|block| block.to_bytes().unwrap()).collect()
    }

    /// Whole blocks, and what comes after them.
    fn read_all(bytes: &[u8]) -> (Vec<Block>, Found) {
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            let mut rest = &bytes[at..];
            match read(&mut rest, (bytes.len() - at) as u64).unwrap() {
                Found::Block(block) => {
                    at += block.bytes() as usize;
                    found.push(block);
                }
                end => return (found, end),
            }
        }
    }

    #[test]
    fn blocks_come_back_as_they_were() {
        assert_eq!(read_all(&bytes()), (blocks().to_vec(), Found::End));
        let block = &blocks()[0];
        let at = block.records_at() as usize;
        assert_eq!(bytes()[at..][..12], block.records);
        assert_eq!(block.to_bytes().unwrap().len() as u64, block.bytes());
    }

    #[test]
    fn a_file_cut_anywhere_has_its_whole_blocks_and_a_torn_one() {
        let (bytes, first) = (bytes(), blocks()[0].bytes() as usize);
        for length in 0..bytes.len() {
            let (found, end) = read_all(&bytes[..length]);
            assert_eq!(found.len(), usize::from(length >= first), "{length}");
            let expected = if length == 0 || length == first { Found::End } else { Found::Torn };
            assert_eq!(end, expected, "{length}");
        }
        // The length has reached the disk, the bytes have not.
        for zeros in [1, 19, 20, 500] {
            let longer = [&bytes[..first], &vec![0; zeros]].concat();
            assert_eq!(read_all(&longer), (blocks()[..1].to_vec(), Found::Torn));
        }
    }

    proptest! {
        /// A changed byte is never taken for labels. What comes before it is there; only a body at
        /// the very end may have been torn.
        #[test]
        fn a_changed_byte_is_found(at in 0..bytes().len(), change in 1..=255_u8) {
            let mut bytes = bytes();
            bytes[at] ^= change;
            let (found, end) = read_all(&bytes);
            let first = blocks()[0].bytes() as usize;
            prop_assert_eq!(found.len(), usize::from(at >= first));
            let torn = at >= first + HEADER as usize;
            prop_assert_eq!(end == Found::Torn, torn);
            prop_assert_eq!(matches!(end, Found::Damaged(_)), !torn);
        }
    }
}
