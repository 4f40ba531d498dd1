//! The output projection beside captured hidden states.

use std::{collections::BTreeMap, path::Path};

use stillhouse_nn::{
    Head, ModelError,
    io::{read_tensors, write_tensors},
};

/// The head's file.
pub(crate) const HEAD: &str = "head.safetensors";
const WEIGHT: &str = "weight";
const BIAS: &str = "bias";
const SOFTCAP: &str = "logit_softcap";

/// Writes it, all or nothing. Equal heads give equal bytes.
pub(crate) fn write(folder: &Path, head: &Head) -> Result<(), ModelError> {
    let weight = (vec![head.classes, head.hidden_size], head.weight.clone());
    let bias = head.bias.clone().map(|bias| (BIAS.to_owned(), (vec![head.classes], bias)));
    let softcap = head.softcap.map(|cap| (SOFTCAP.to_owned(), (vec![1], vec![cap])));
    let tensors = [(WEIGHT.to_owned(), weight)].into_iter().chain(bias).chain(softcap).collect();
    write_tensors(&folder.join(HEAD), &tensors)
}

/// Reads the head of a teacher of these sizes.
pub(crate) fn read(folder: &Path, classes: usize, hidden_size: usize) -> Result<Head, ModelError> {
    let file = folder.join(HEAD);
    let weight = (WEIGHT.to_owned(), vec![classes, hidden_size]);
    let mut expected =
        BTreeMap::from([weight, (BIAS.to_owned(), vec![classes]), (SOFTCAP.to_owned(), vec![1])]);
    // Bias and cap need not be there.
    let mut tensors = loop {
        match read_tensors(&file, &expected) {
            Err(ModelError::MissingTensor { tensor, .. }) if tensor != WEIGHT => {
                expected.remove(&tensor);
            }
            read => break read?,
        }
    };
    let mut take = |name: &str| tensors.remove(name).map(|(_, values)| values);
    let softcap = take(SOFTCAP).and_then(|values| values.first().copied());
    let (weight, bias) = (take(WEIGHT).unwrap_or_default(), take(BIAS));
    Ok(Head { weight, bias, classes, hidden_size, softcap })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        for (bias, softcap) in [(None, None), (Some(vec![0.5, -0.0]), None), (None, Some(30.0))] {
            let weight = vec![1.0, -2.5, 1e-30, 4.0, 5.0, 6.0];
            let head = Head { weight, bias, classes: 2, hidden_size: 3, softcap };
            write(folder.path(), &head).unwrap();
            assert_eq!(read(folder.path(), 2, 3).unwrap(), head);
            assert!(read(folder.path(), 3, 2).is_err());
        }
    }
}
