//! What fuzzers and their corpora run: any bytes are a value or an error.

use std::{collections::BTreeMap, path::Path};

use crate::io::parse_tensors;

/// A file that should hold a matrix and a vector, in any element type.
pub fn safetensors(bytes: &[u8]) {
    let expected: BTreeMap<String, Vec<usize>> =
        [("weight".to_owned(), vec![2, 3]), ("bias".to_owned(), vec![2])].into();
    if let Ok(tensors) = parse_tensors(Path::new("fuzzed"), bytes, &expected) {
        assert_eq!(tensors["weight"].1.len() + tensors["bias"].1.len(), 8);
        assert!(tensors.values().flat_map(|(_, values)| values).all(|value| value.is_finite()));
    }
}
