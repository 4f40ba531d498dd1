use super::*;
use crate::rng::Philox;

fn draw(rng: &mut Philox, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| x[(i % rows) * columns + i / rows]).collect()
}

/// Both ways of computing, on every machine that has them.
fn rights(matrix: Matrix<'_, f32>) -> [Right; 2] {
    [Right::new(matrix), Right(Arranged::Rounded(Rounded::new(matrix)))]
}

#[test]
fn equals_the_definition_for_plain_and_transposed_operands() {
    let mut rng = Philox::new(1, 0);
    let sizes = [
        (1, 1, 1),
        (3, 5, 7),
        (12, 32, 256),
        (13, 33, 257),
        (40, 1, 9),
        (1, 40, 1030),
        (100, 333, 5),
    ];
    for (m, n, k) in sizes {
        let (a, b) = (draw(&mut rng, m * k), draw(&mut rng, k * n));
        let start = draw(&mut rng, m * n);
        let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
        let near = |x: &f32| bf16::from_f32(*x).to_f64();
        let (near_a, near_b): (Vec<_>, Vec<_>) =
            (a.iter().map(near).collect(), b.iter().map(near).collect());
        for accumulate in [false, true] {
            let expected = |i: usize| {
                let terms = (0..k).map(|j| near_a[i / n * k + j] * near_b[j * n + i % n]);
                terms.sum::<f64>() + if accumulate { f64::from(start[i]) } else { 0.0 }
            };
            for (lhs, rhs) in [
                (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                (Matrix::new(&at, k, m).t(), Matrix::new(&b, k, n)),
                (Matrix::new(&a, m, k), Matrix::new(&bt, n, k).t()),
            ] {
                for right in rights(rhs) {
                    let mut out = start.clone();
                    right.multiply(&mut out, accumulate, lhs);
                    for (i, &found) in out.iter().enumerate() {
                        let error = (f64::from(found) - expected(i)).abs();
                        assert!(error < 2e-7 * (k as f64 + 4.0), "{error} ({m} {n} {k})");
                    }
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let mut rng = Philox::new(2, 0);
    // Many rows, and many columns.
    for (m, n, k) in [(511, 70, 300), (30, 700, 300)] {
        let (a, b) = (draw(&mut rng, m * k), draw(&mut rng, k * n));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut out = vec![f32::NAN; m * n];
                Right::new(Matrix::new(&b, k, n)).multiply(&mut out, false, Matrix::new(&a, m, k));
                out
            })
        };
        let first = run(1);
        assert!([2, 3, 5].into_iter().all(|threads| run(threads) == first));
    }
}

#[test]
fn rounds_as_half_does() {
    let mut rng = Philox::new(3, 0);
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1.003_906_3, 1e-40];
    let drawn = (0..10_000).map(|_| f32::from_bits(rng.next_u32())).filter(|x| !x.is_nan());
    let values: Vec<f32> = special.into_iter().chain(drawn).collect();
    let mut found = values.clone();
    round(&mut found);
    for (found, value) in found.iter().zip(&values) {
        assert_eq!(found.to_bits(), bf16::from_f32(*value).to_f32().to_bits(), "{value}");
    }
    assert_eq!(widen(&narrow(&found)), found);
}

/// Also of the NaN whose upper half would be that of an infinity.
#[test]
fn what_is_not_a_number_stays_so() {
    for nan in [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xff80_0001)] {
        let mut rounded = [nan, 1.0];
        round(&mut rounded);
        assert!(rounded[0].is_nan() && rounded[1] == 1.0);
        for right in rights(Matrix::new(&[1.0, 2.0], 2, 1)) {
            let mut out = [0.0; 2];
            right.multiply(&mut out, false, Matrix::new(&[nan, 1.0, 1.0, 1.0], 2, 2));
            assert!(out[0].is_nan() && out[1] == 3.0, "{out:?}");
        }
    }
}

#[test]
fn nothing_comes_of_nothing() {
    let mut out = [1.0; 4];
    Right::new(Matrix::new(&[], 0, 2)).multiply(&mut out, false, Matrix::new(&[], 2, 0));
    assert_eq!(out, [0.0; 4]);
    Right::new(Matrix::new(&[1.0; 6], 3, 2)).multiply(&mut [], false, Matrix::new(&[], 0, 3));
}
