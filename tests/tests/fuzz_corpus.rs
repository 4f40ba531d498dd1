//! What fuzzers have found worth keeping (`tests/fuzz`) goes through every parser, and so do cuts and
//! changes of it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, path::Path};

use stillhouse_tests::fuzzed::{TARGETS, Target};

/// The corpus of a target: what is checked in, and what it begins with.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
    let files = fs::read_dir(&folder).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    let kept: Vec<Vec<u8>> = files.collect();
    assert!(kept.len() >= 10, "{}: {} files", folder.display(), kept.len());
    kept.into_iter().chain((target.seeds)()).collect()
}

#[test]
fn no_parser_panics() {
    for target in TARGETS {
        for bytes in corpus(target) {
            (target.run)(&bytes);
            for at in 0..bytes.len().min(512) {
                (target.run)(&bytes[..at]);
                let mut changed = bytes.clone();
                changed[at] ^= 0x81;
                (target.run)(&changed);
            }
        }
    }
}
