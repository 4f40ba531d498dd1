//! A small part of a training set.

use std::collections::BTreeMap;

use stillhouse_nn::Philox;

use super::{DataError, Dataset};
use crate::random;

/// Chooses `count` rows, the same for the same seed: as many of each class as divides evenly
/// (classes that have fewer give all they have), the rest from any class. Within a class the
/// choice is uniform. Small subsets drawn without regard to class differ in how balanced they are,
/// which hides what a comparison of losses is meant to show.
///
/// # Errors
/// If `count` is 0 or more than the dataset has, or its rows have no labels.
pub fn balanced(data: &Dataset, count: usize, seed: u64) -> Result<Dataset, DataError> {
    let Some(labels) = data.labels() else {
        let expected = "none where data.unlabelled = true; data.fraction needs no classes";
        return Err(DataError::mismatch("data.train_rows", count, expected));
    };
    let order = order(data, count, seed)?;
    Ok(data.select(&balanced_rows(labels, order, count)))
}

/// The rows of [`balanced`], ascending, of all rows in random order.
pub(crate) fn balanced_rows(labels: &[u32], order: Vec<u32>, count: usize) -> Vec<u32> {
    let mut taken: BTreeMap<u32, usize> = labels.iter().map(|label| (*label, 0)).collect();
    let quota = count / taken.len().max(1);
    let (mut chosen, mut others) = (Vec::with_capacity(count), Vec::new());
    for row in order {
        let of_class = taken.entry(labels[row as usize]).or_default();
        if *of_class < quota {
            *of_class += 1;
            chosen.push(row);
        } else {
            others.push(row);
        }
    }
    let missing = count - chosen.len();
    chosen.extend(&others[..missing]);
    chosen.sort_unstable();
    chosen
}

/// Chooses `count` rows uniformly, the same for the same seed.
///
/// # Errors
/// If `count` is 0 or more than the dataset has.
pub fn uniform(data: &Dataset, count: usize, seed: u64) -> Result<Dataset, DataError> {
    let mut chosen = order(data, count, seed)?;
    chosen.truncate(count);
    chosen.sort_unstable();
    Ok(data.select(&chosen))
}

/// All rows in random order.
fn order(data: &Dataset, count: usize, seed: u64) -> Result<Vec<u32>, DataError> {
    if count == 0 || count > data.len() {
        let expected = format!("1 to {}, the rows of the training set", data.len());
        return Err(DataError::mismatch("data.train_rows", count, expected));
    }
    Ok(shuffled(data.len(), seed))
}

/// That many rows in random order, the same for the same seed.
pub(crate) fn shuffled(rows: usize, seed: u64) -> Vec<u32> {
    let size = u32::try_from(rows).unwrap_or(u32::MAX);
    Philox::new(seed, random::SUBSET).permutation(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{dataset_for_tests as sample, unlabelled_for_tests as unlabelled};

    fn counts(data: &Dataset) -> Vec<usize> {
        let labels = data.labels().unwrap();
        let of = |class: u32| labels.iter().filter(|label| **label == class).count();
        (0..4).map(of).collect()
    }

    #[test]
    fn classes_are_balanced_and_the_seed_decides() {
        let data = sample(100, 2, 4);
        assert_eq!(counts(&balanced(&data, 40, 1).unwrap()), [10; 4]);
        let uneven = balanced(&data, 42, 1).unwrap();
        assert_eq!(uneven.len(), 42);
        assert!(counts(&uneven).iter().all(|count| *count >= 10));
        assert_eq!(balanced(&data, 42, 1).unwrap(), uneven);
        assert_ne!(balanced(&data, 42, 2).unwrap(), uneven);
        assert_eq!(balanced(&data, 100, 3).unwrap(), data);
    }

    #[test]
    fn a_scarce_class_is_made_up_for() {
        let data = sample(100, 1, 4).select(&[0, 1, 2, 4, 5, 6, 8, 9, 3]);
        let chosen = balanced(&data, 8, 1).unwrap();
        assert_eq!(chosen.len(), 8);
        assert_eq!(counts(&chosen)[3], 1);
    }

    #[test]
    fn more_than_there_is_names_the_range() {
        let error = balanced(&sample(5, 1, 2), 6, 1).unwrap_err().to_string();
        assert_eq!(error, "data.train_rows is 6, expected 1 to 5, the rows of the training set");
        assert!(balanced(&sample(5, 1, 2), 0, 1).is_err());
    }
    #[test]
    fn rows_without_labels_are_chosen_uniformly() {
        let data = unlabelled(&sample(100, 2, 4));
        let error = balanced(&data, 10, 1).unwrap_err().to_string();
        assert!(error.starts_with("data.train_rows is 10, expected none where"), "{error}");
        let some = uniform(&data, 30, 1).unwrap();
        assert_eq!((some.len(), some.labels()), (30, None));
        assert_eq!(uniform(&data, 30, 1).unwrap(), some);
        assert_ne!(uniform(&data, 30, 2).unwrap(), some);
        assert_eq!(uniform(&data, 100, 3).unwrap(), data);
    }
}
