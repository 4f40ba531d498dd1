//! Tokens in a file, under the checksum of all that they were made of.
//!
//! ```text
//! 8 bytes   "SHTOKEN2"
//! 32 bytes  key: SHA-256 over settings, tokenizer and files
//! twice     counts (7 x u64), documents u64, tokens u64, classes u64 (0, or as many as documents),
//!           ends of documents (u64 each), ids (u32 each), marks (one bit each, filled up to whole
//!           bytes), classes (u32 each)
//! 32 bytes  SHA-256 of all before it
//! ```
//!
//! All little-endian. A file that is not exactly this is made anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Corpora, Corpus, Counts};
use crate::recipe::identity::hex;

const MAGIC: &[u8; 8] = b"SHTOKEN2";

fn file(folder: &Path, key: &[u8; 32]) -> PathBuf {
    folder.join(format!("tokens-{}.bin", hex(&key[..8])))
}

/// What was made of the same before; none if it is not there, or not whole.
pub(super) fn read(folder: &Path, key: &[u8; 32]) -> Option<Corpora> {
    let bytes = fs::read(file(folder, key)).ok()?;
    let (body, digest) = bytes.split_last_chunk::<32>()?;
    if Sha256::digest(body).as_slice() != digest {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?.strip_prefix(key)?;
    let mut cursor = Cursor(rest);
    let corpora = Corpora { train: cursor.corpus()?, validation: cursor.corpus()? };
    cursor.0.is_empty().then_some(corpora)
}

/// Writes the file, all or nothing.
pub(super) fn write(folder: &Path, key: &[u8; 32], corpora: &Corpora) -> io::Result<()> {
    let mut bytes = [MAGIC.as_slice(), key].concat();
    put(&mut bytes, &corpora.train);
    put(&mut bytes, &corpora.validation);
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    fs::create_dir_all(folder)?;
    stillhouse_nn::io::write_atomic(&file(folder, key), &bytes).map_err(io::Error::other)
}

fn put(bytes: &mut Vec<u8>, corpus: &Corpus) {
    let Counts { documents, tokens, learnt, malformed, invalid_utf8, empty, long } = corpus.counts;
    let counts = [documents, tokens, learnt, malformed, invalid_utf8, empty, long];
    let sizes = [corpus.starts.len() - 1, corpus.ids.len(), corpus.classes.len()];
    let sizes = sizes.map(|size| size as u64);
    let ends = corpus.starts[1..].iter().map(|&end| end as u64);
    for number in counts.into_iter().chain(sizes).chain(ends) {
        bytes.extend(number.to_le_bytes());
    }
    corpus.ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    let byte =
        |marks: &[bool]| marks.iter().rev().fold(0, |byte, mark| byte << 1 | u8::from(*mark));
    bytes.extend(corpus.learn.chunks(8).map(byte));
    corpus.classes.iter().for_each(|class| bytes.extend(class.to_le_bytes()));
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn corpus(&mut self) -> Option<Corpus> {
        let counts = Counts {
            documents: self.number()?,
            tokens: self.number()?,
            learnt: self.number()?,
            malformed: self.number()?,
            invalid_utf8: self.number()?,
            empty: self.number()?,
            long: self.number()?,
        };
        let (documents, tokens) = (self.number()? as usize, self.number()? as usize);
        let classes = self.number()? as usize;
        let ends = self.take(documents.checked_mul(8)?)?;
        let ends = ends.as_chunks::<8>().0.iter().map(|end| u64::from_le_bytes(*end) as usize);
        let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let ids = self.words(tokens)?;
        let marks = self.take(tokens.div_ceil(8))?;
        let learn = (0..tokens).map(|at| marks[at / 8] >> (at % 8) & 1 == 1).collect();
        let whole = starts.is_sorted() && starts.last() == Some(&tokens);
        let classes = Some(classes).filter(|classes| [0, documents].contains(classes))?;
        let classes = self.words(classes)?;
        whole.then_some(Corpus { ids, learn, starts, classes, counts })
    }

    fn words(&mut self, count: usize) -> Option<Vec<u32>> {
        let bytes = self.take(count.checked_mul(4)?)?;
        Some(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}
