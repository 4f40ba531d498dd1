//! The idx format of MNIST: a magic number, the sizes of the dimensions, the elements. Read
//! plain or gzip-compressed.
//!
//! Format: <http://yann.lecun.com/exdb/mnist/>, "THE IDX FILE FORMAT". Only unsigned bytes, the
//! only element type that MNIST and its relatives use.

use std::{io::Read, path::Path};

use super::file::{self, Fault, FileError};

/// Third byte of the magic number: elements are unsigned bytes.
const UNSIGNED_BYTE: u32 = 0x08;
/// Most bytes of elements that a file may declare. A compressed file can claim any number of them
/// and deliver zeros, so the claim alone must not decide.
const MAX_ELEMENTS: u64 = 1 << 31;

/// The elements of an idx file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idx {
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The elements, row-major: exactly the product of `shape`.
    pub elements: Vec<u8>,
}

/// Reads an idx file of unsigned bytes with `dimensions` dimensions.
///
/// # Errors
/// If the file cannot be read, its magic number is another, its body is shorter or longer than the
/// dimensions say, or they multiply to more than 2 GiB.
pub fn read(file: &Path, dimensions: u8) -> Result<Idx, FileError> {
    parse(file, file::open(file)?, dimensions)
}

/// Reads header and body. The body is read up to one byte more than the header declares, and
/// memory grows with the bytes that came, not with the claim.
fn parse(file: &Path, mut from: impl Read, dimensions: u8) -> Result<Idx, FileError> {
    let failed = FileError::reading(file);
    let refused = |field: &str, found: String, expected: String| {
        Fault::new(field, found, expected).in_file(file)
    };

    let header_length = 4 + 4 * usize::from(dimensions);
    let mut header = Vec::new();
    from.by_ref().take(header_length as u64).read_to_end(&mut header).map_err(&failed)?;
    let mut words = header
        .chunks_exact(4)
        .map(|word| word.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte)));

    let expected = UNSIGNED_BYTE << 8 | u32::from(dimensions);
    if let Some(magic) = words.next().filter(|magic| *magic != expected) {
        return Err(refused("magic number", format!("{magic:#010x}"), format!("{expected:#010x}")));
    }
    if header.len() < header_length {
        let expected = format!("{header_length} bytes");
        return Err(refused("header", format!("{} bytes", header.len()), expected));
    }
    let shape: Vec<usize> = words.map(|size| size as usize).collect();

    let declared = shape
        .iter()
        .try_fold(1_u64, |product, size| product.checked_mul(*size as u64))
        .filter(|product| *product <= MAX_ELEMENTS)
        .ok_or_else(|| {
            let expected = format!("a product of at most {MAX_ELEMENTS}");
            refused("dimensions", format!("{shape:?}"), expected)
        })?;
    let mut elements = Vec::new();
    from.take(declared + 1).read_to_end(&mut elements).map_err(&failed)?;
    match (elements.len() as u64).cmp(&declared) {
        std::cmp::Ordering::Equal => Ok(Idx { shape, elements }),
        std::cmp::Ordering::Less => {
            let expected = format!("{declared} bytes, as dimensions {shape:?} say");
            Err(refused("body", format!("{} bytes", elements.len()), expected))
        }
        std::cmp::Ordering::Greater => {
            let expected = format!("{declared} bytes, as dimensions {shape:?} say");
            Err(refused("body", format!("more than {declared} bytes"), expected))
        }
    }
}

/// Reads bytes as files of one to four dimensions, plain and compressed.
pub(crate) fn fuzzed(bytes: &[u8]) {
    let file = Path::new("fuzzed");
    for dimensions in 1..=4 {
        let unpacked = flate2::bufread::MultiGzDecoder::new(bytes).take(1 << 22);
        let read = [parse(file, bytes, dimensions), parse(file, unpacked, dimensions)];
        for idx in read.into_iter().flatten() {
            assert_eq!(idx.elements.len(), idx.shape.iter().product::<usize>());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{fs, io::Write as _};

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    /// An idx file's bytes.
    pub(crate) fn idx_bytes(shape: &[u32], elements: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, shape.len() as u8];
        shape.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
        bytes.extend(elements);
        bytes
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_bytes(bytes: &[u8], dimensions: u8) -> Result<Idx, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("some-idx");
        fs::write(&file, bytes).unwrap();
        read(&file, dimensions).map_err(|error| error.to_string())
    }

    #[test]
    fn plain_and_compressed_read_alike_whatever_the_name() {
        let bytes = idx_bytes(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        let plain = read_bytes(&bytes, 3).unwrap();
        assert_eq!(plain.shape, [2, 1, 3]);
        assert_eq!(plain.elements, [1, 2, 3, 4, 5, 6]);
        assert_eq!(read_bytes(&gzip(&bytes), 3).unwrap(), plain);
    }

    #[test]
    fn another_magic_number_is_named() {
        let error = read_bytes(&idx_bytes(&[2], &[1, 2]), 3).unwrap_err();
        assert!(error.ends_with("magic number is 0x00000801, expected 0x00000803"), "{error}");
        let mut floats = idx_bytes(&[2], &[1, 2]);
        floats[2] = 0x0d;
        let error = read_bytes(&floats, 1).unwrap_err();
        assert!(error.contains("some-idx: magic number is 0x00000d01"), "{error}");
    }

    #[test]
    fn a_body_of_another_length_is_an_error() {
        for (elements, found) in [(&[1, 2][..], "2 bytes"), (&[1, 2, 3, 4], "more than 3 bytes")] {
            let bytes = idx_bytes(&[3], elements);
            for bytes in [gzip(&bytes), bytes] {
                let error = read_bytes(&bytes, 1).unwrap_err();
                assert!(error.contains(&format!("body is {found}, expected 3 bytes")), "{error}");
            }
        }
    }

    #[test]
    fn any_cut_is_an_error() {
        let bytes = idx_bytes(&[2, 2, 2], &[7; 8]);
        let packed = gzip(&bytes);
        for bytes in [bytes, packed] {
            for length in 0..bytes.len() {
                assert!(read_bytes(&bytes[..length], 3).is_err(), "cut to {length} bytes");
            }
        }
    }

    #[test]
    fn a_header_that_claims_too_much_is_refused_before_the_body() {
        let error = read_bytes(&idx_bytes(&[u32::MAX, u32::MAX, u32::MAX], &[1]), 3).unwrap_err();
        assert!(error.contains("dimensions is [4294967295, 4294967295, 4294967295]"), "{error}");
        // Within the limit, but not there: an error of length, not 2 GiB of memory.
        let error = read_bytes(&idx_bytes(&[1 << 30], &[1]), 1).unwrap_err();
        assert!(error.contains("body is 1 bytes, expected 1073741824 bytes"), "{error}");
    }
}
