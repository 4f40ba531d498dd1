//! An event file for TensorBoard: TFRecord frames around `tensorflow.Event` messages.
//!
//! Only scalars, so the messages are encoded by hand. Fields (tensorflow/core/util/event.proto and
//! tensorflow/core/framework/summary.proto): Event { wall_time = 1: double; step = 2: int64;
//! file_version = 3: string; summary = 5: Summary }, Summary { value = 1: repeated Value },
//! Value { tag = 1: string; simple_value = 2: float }.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{RunError, append::AppendFile, crc32c};

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// An event file, open for appending.
#[derive(Debug)]
pub(super) struct EventFile(AppendFile);

impl EventFile {
    /// Opens the file and cuts it to `length`. Started anew, it gets the version record.
    pub(super) fn open(path: &Path, length: u64) -> Result<Self, RunError> {
        let mut file = AppendFile::open(path, length)?;
        if file.is_empty() {
            let mut event = event_at(0);
            put_bytes(&mut event, 3, b"brain.Event:2");
            file.write(&frame(&event))?;
        }
        Ok(Self(file))
    }

    /// Appends scalars of one step.
    pub(super) fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), RunError> {
        let mut event = event_at(step);
        put_bytes(&mut event, 5, &summary(values));
        self.0.write(&frame(&event))
    }

    pub(super) fn sync(&mut self) -> Result<u64, RunError> {
        self.0.sync()
    }
}

/// An event that so far holds the time and the step.
fn event_at(step: u64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut event = Vec::new();
    put_key(&mut event, 1, FIXED64);
    event.extend(now.as_secs_f64().to_le_bytes());
    put_key(&mut event, 2, VARINT);
    put_varint(&mut event, step);
    event
}

fn summary(values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, number) in values {
        let mut value = Vec::new();
        put_bytes(&mut value, 1, tag.as_bytes());
        put_key(&mut value, 2, FIXED32);
        value.extend((*number as f32).to_le_bytes());
        put_bytes(&mut summary, 1, &value);
    }
    summary
}

/// One TFRecord: length, its checksum, data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(crc32c::masked(&length).to_le_bytes());
    record.extend(data);
    record.extend(crc32c::masked(data).to_le_bytes());
    record
}

fn put_key(into: &mut Vec<u8>, field: u8, wire_type: u8) {
    into.push(field << 3 | wire_type);
}

fn put_bytes(into: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    put_key(into, field, BYTES);
    put_varint(into, bytes.len() as u64);
    into.extend(bytes);
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The data of every frame; panics where a checksum is wrong.
    fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (length_crc, rest) = rest.split_at(4);
            assert_eq!(length_crc, crc32c::masked(length).to_le_bytes());
            let (data, rest) =
                rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (data_crc, rest) = rest.split_at(4);
            assert_eq!(data_crc, crc32c::masked(data).to_le_bytes());
            found.push(data.to_vec());
            bytes = rest;
        }
        found
    }

    /// Bytes of `Summary(value=[Value(tag="a", simple_value=1.0)])` by the protobuf encoding rules.
    #[test]
    fn a_summary_has_the_bytes_of_its_message() {
        let expected = [0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0x80, 0x3f];
        assert_eq!(summary(&[("a", 1.0)]), expected);
    }

    #[test]
    fn varints_of_more_than_a_byte_carry_on() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 300);
        assert_eq!(bytes, [0xac, 0x02]);
    }

    #[test]
    fn a_file_starts_with_its_version_and_goes_on_after_a_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.out.tfevents.test");
        let mut file = EventFile::open(&path, 0).unwrap();
        file.scalars(1, &[("train/loss", 0.5)]).unwrap();
        let length = file.sync().unwrap();
        file.scalars(2, &[("train/loss", 0.25)]).unwrap();
        file.sync().unwrap();
        let mut file = EventFile::open(&path, length).unwrap();
        file.scalars(2, &[("train/loss", 0.125)]).unwrap();
        file.sync().unwrap();

        let found = frames(&fs::read(&path).unwrap());
        assert_eq!(found.len(), 3);
        assert!(found[0].ends_with(b"brain.Event:2"));
        // Key of the step (field 2, varint) and its value follow the 9 bytes of the wall time.
        assert_eq!(found[1][9..11], [0x10, 1]);
        assert!(found[2].ends_with(&0.125_f32.to_le_bytes()));

        fs::remove_file(&path).unwrap();
        EventFile::open(&path, length).unwrap().sync().unwrap();
        let found = frames(&fs::read(&path).unwrap());
        assert!(found.len() == 1 && found[0].ends_with(b"brain.Event:2"));
    }
}
