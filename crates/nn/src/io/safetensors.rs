//! Weights in safetensors files, checked on the way in and byte-deterministic on the way out.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::atomic::write_atomic;
use crate::error::ModelError;

/// Tensors by name: shape and row-major f32 values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The bytes of a safetensors file with `tensors` in f32, in order of name. Equal tensors give
/// equal bytes.
///
/// # Errors
///
/// [`ModelError::Encode`] if a tensor does not hold as many values as its shape says.
pub fn tensor_bytes(tensors: &Tensors) -> Result<Vec<u8>, ModelError> {
    let encode = |reason: String| ModelError::Encode { reason };
    let bytes: Vec<Vec<u8>> = tensors
        .values()
        .map(|(_, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, (shape, _)), bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            view.map(|view| (name.as_str(), view)).map_err(|e| encode(format!("{name}: {e}")))
        })
        .collect::<Result<_, _>>()?;
    // What transformers asks of a file before it loads it.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(|e| encode(e.to_string()))
}

/// Checks that every value is finite; `path` only names the file.
pub(crate) fn check_finite(path: &Path, tensors: &Tensors) -> Result<(), ModelError> {
    for (name, (_, values)) in tensors {
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            return Err(ModelError::NonFiniteWeight {
                path: path.to_owned(),
                tensor: name.clone(),
                index,
                value: values[index],
            });
        }
    }
    Ok(())
}

/// Writes [`tensor_bytes`] to `path`, all or nothing.
///
/// # Errors
///
/// [`ModelError::NonFiniteWeight`], as [`read_tensors`] would refuse the file, and as
/// [`tensor_bytes`] and [`write_atomic`].
pub fn write_tensors(path: &Path, tensors: &Tensors) -> Result<(), ModelError> {
    check_finite(path, tensors)?;
    write_atomic(path, &tensor_bytes(tensors)?)
}

/// Reads a file that must hold exactly the tensors of `expected` (name to shape), in F32, F16 or
/// BF16, all finite. Values are widened to f32, which is exact. PyTorch's count of the batches that a
/// running mean has seen may lie beside it: nothing follows from it.
///
/// # Errors
///
/// A [`ModelError`] that names the file, the tensor, what was found and what was expected.
pub fn read_tensors(
    path: &Path,
    expected: &BTreeMap<String, Vec<usize>>,
) -> Result<Tensors, ModelError> {
    let bytes =
        std::fs::read(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    parse_tensors(path, &bytes, expected)
}

/// [`read_tensors`] on the bytes of a file; `path` only names it.
pub(crate) fn parse_tensors(
    path: &Path,
    bytes: &[u8],
    expected: &BTreeMap<String, Vec<usize>>,
) -> Result<Tensors, ModelError> {
    let counted = |name: &str| {
        let prefix = name.strip_suffix("num_batches_tracked");
        prefix.is_some_and(|prefix| expected.contains_key(&format!("{prefix}running_mean")))
    };
    let tensors = collect_tensors(path, bytes, expected, counted)?;
    if let Some((name, shape)) = expected.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        return Err(ModelError::MissingTensor {
            path: path.to_owned(),
            tensor: name.clone(),
            expected: shape.clone(),
        });
    }
    check_finite(path, &tensors)?;
    Ok(tensors)
}

/// The tensors of a file that may be one of several: each must be in `expected`, or is passed over
/// where `redundant` says so. Values may be anything.
pub(crate) fn collect_tensors(
    path: &Path,
    bytes: &[u8],
    expected: &BTreeMap<String, Vec<usize>>,
    redundant: impl Fn(&str) -> bool,
) -> Result<Tensors, ModelError> {
    let file = SafeTensors::deserialize(bytes).map_err(|reason| ModelError::Malformed {
        path: path.to_owned(),
        length: bytes.len(),
        reason: reason.to_string(),
    })?;
    let unexpected = |name: &&str| !expected.contains_key(*name) && !redundant(name);
    if let Some(name) = file.names().into_iter().filter(unexpected).min() {
        return Err(ModelError::UnexpectedTensor {
            path: path.to_owned(),
            tensor: name.to_owned(),
            expected: listed(expected),
        });
    }
    let mut tensors = Tensors::new();
    for (name, shape) in expected {
        let Ok(view) = file.tensor(name) else { continue };
        if view.shape() != shape {
            return Err(ModelError::WrongShape {
                path: path.to_owned(),
                tensor: name.clone(),
                found: view.shape().to_vec(),
                expected: shape.clone(),
            });
        }
        let values = widen(&view).ok_or_else(|| ModelError::WrongDtype {
            path: path.to_owned(),
            tensor: name.clone(),
            found: view.dtype().to_string(),
            expected: "F32, F16 or BF16".to_owned(),
        })?;
        tensors.insert(name.clone(), (shape.clone(), values));
    }
    Ok(tensors)
}

/// Names for an error, not more than a person reads.
fn listed(expected: &BTreeMap<String, Vec<usize>>) -> String {
    const MOST: usize = 40;
    let names: Vec<&str> = expected.keys().take(MOST).map(String::as_str).collect();
    let more = if expected.len() > MOST { ", ..." } else { "" };
    format!("{}{more}", names.join(", "))
}

/// The elements of a view as f32; none for a dtype that weights do not come in.
fn widen(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let pairs = || view.data().as_chunks::<2>().0.iter();
    match view.dtype() {
        Dtype::F32 => {
            Some(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        Dtype::F16 => Some(pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Tensors {
        Tensors::from([
            ("a".to_owned(), (vec![2, 2], vec![1.0, -2.5, 3.0, f32::MIN_POSITIVE])),
            ("b".to_owned(), (vec![1], vec![0.1])),
        ])
    }

    fn shapes(tensors: &Tensors) -> BTreeMap<String, Vec<usize>> {
        tensors.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect()
    }

    fn parse(bytes: &[u8]) -> Result<Tensors, String> {
        parse_tensors(Path::new("m.st"), bytes, &shapes(&example())).map_err(|e| e.to_string())
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        write_tensors(&path, &example()).unwrap();
        assert_eq!(read_tensors(&path, &shapes(&example())).unwrap(), example());
        assert_eq!(std::fs::read(&path).unwrap(), tensor_bytes(&example()).unwrap());
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let mut tensors = example();
            tensors.get_mut("a").unwrap().1[3] = bad;
            let error = write_tensors(&path, &tensors).unwrap_err().to_string();
            assert!(error.contains(&format!("tensor a holds {bad} at element 3")), "{error}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn half_precision_is_widened() {
        let halves: Vec<u8> = [1.5f32, -0.25]
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .chain([2.0f32, 3.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()))
            .collect();
        let brain: Vec<u8> = bf16::from_f32(-7.0).to_le_bytes().to_vec();
        let views = [
            ("a", TensorView::new(Dtype::F16, vec![2, 2], &halves).unwrap()),
            ("b", TensorView::new(Dtype::BF16, vec![1], &brain).unwrap()),
        ];
        let found = parse(&safetensors::serialize(views, None).unwrap()).unwrap();
        assert_eq!(found["a"].1, [1.5, -0.25, 2.0, 3.0]);
        assert_eq!(found["b"].1, [-7.0]);
    }

    #[test]
    fn each_fault_is_named() {
        let refuse = |change: &dyn Fn(&mut Tensors), words: &[&str]| {
            let mut tensors = example();
            change(&mut tensors);
            let error = parse(&tensor_bytes(&tensors).unwrap()).unwrap_err();
            for word in words.iter().chain(&["m.st"]) {
                assert!(error.contains(word), "{error} lacks {word}");
            }
        };
        refuse(&|t| drop(t.remove("b")), &["tensor b is missing", "[1]"]);
        refuse(&|t| drop(t.insert("c".into(), (vec![1], vec![0.0]))), &["tensor c", "a, b"]);
        refuse(&|t| t.get_mut("a").unwrap().0 = vec![4], &["tensor a", "[4]", "[2, 2]"]);
        refuse(&|t| t.get_mut("a").unwrap().1[2] = f32::NAN, &["tensor a", "NaN", "element 2"]);
        refuse(&|t| t.get_mut("b").unwrap().1[0] = f32::INFINITY, &["tensor b", "inf"]);
        let bytes = 3i64.to_le_bytes();
        let views = [
            ("a", TensorView::new(Dtype::I16, vec![2, 2], &bytes).unwrap()),
            ("b", TensorView::new(Dtype::I32, vec![1], &bytes[..4]).unwrap()),
        ];
        let error = parse(&safetensors::serialize(views, None).unwrap()).unwrap_err();
        assert!(error.contains("I16") && error.contains("F32, F16 or BF16"), "{error}");
    }

    #[test]
    fn a_count_of_batches_lies_beside_a_running_mean_only() {
        let count = 7i64.to_le_bytes();
        let mean = 1.5f32.to_le_bytes();
        let file = |prefix: &str| {
            let views = [
                ("bn1.running_mean".to_owned(), TensorView::new(Dtype::F32, vec![1], &mean)),
                (
                    format!("{prefix}num_batches_tracked"),
                    TensorView::new(Dtype::I64, vec![], &count),
                ),
            ];
            let views = views.map(|(name, view)| (name, view.unwrap()));
            let bytes = safetensors::serialize(views, None).unwrap();
            let expected = BTreeMap::from([("bn1.running_mean".to_owned(), vec![1])]);
            parse_tensors(Path::new("m.st"), &bytes, &expected).map_err(|error| error.to_string())
        };
        let found = file("bn1.").unwrap();
        assert_eq!((found.len(), &found["bn1.running_mean"].1), (1, &vec![1.5]));
        let error = file("bn2.").unwrap_err();
        assert!(error.contains("tensor bn2.num_batches_tracked is unexpected"), "{error}");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = tensor_bytes(&example()).unwrap();
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        /// A changed byte is an error or another set of finite tensors, never a panic.
        #[test]
        fn corruption_never_panics(at in 0usize..200, value: u8) {
            let mut bytes = tensor_bytes(&example()).unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(tensors) = parse(&bytes) {
                prop_assert!(tensors.values().all(|(_, v)| v.iter().all(|x| x.is_finite())));
            }
        }
    }
}
