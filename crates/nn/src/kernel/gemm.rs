//! Matrix products on slices: the `gemm` crate behind checked bounds.

use gemm::Parallelism;

use super::real::Real;

/// A matrix in a slice: element (r, c) is `data[r * row_stride + c * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix that fills `data`.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(columns), "a {rows} x {columns} matrix");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// All elements, and whether columns lie together instead of rows.
    pub(crate) fn stored(&self) -> (&'a [T], bool) {
        // Of one column, or one row, both are so.
        (self.data, self.column_stride != 1)
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = lhs * rhs`, or `out += lhs * rhs` where `accumulate`; `out` is row-major.
///
/// The split over threads never divides the inner dimension, so the result does not depend on how
/// many there are. It does depend on the shape: kernels are chosen by it.
pub(crate) fn matmul<T: Real>(
    out: &mut [T],
    accumulate: bool,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
) {
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    product(out, accumulate, lhs, rhs, parallelism);
}

/// [`matmul`] on the thread that calls it.
pub(crate) fn matmul_serial<T: Real>(
    out: &mut [T],
    accumulate: bool,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
) {
    product(out, accumulate, lhs, rhs, Parallelism::None);
}

fn product<T: Real>(
    out: &mut [T],
    accumulate: bool,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    parallelism: Parallelism,
) {
    let (m, n, k) = (lhs.rows, rhs.columns, lhs.columns);
    assert_eq!(rhs.rows, k, "inner dimensions");
    assert_eq!(Some(out.len()), m.checked_mul(n), "a {m} x {n} product");
    // SAFETY: `Matrix` is only made by `new`, which checks that the slice holds rows x columns
    // elements, and `t`, which keeps the set of addresses: every address gemm derives from the
    // strides lies in its slice. `out` holds m x n elements with strides (n, 1), is exclusively
    // borrowed and initialised. `T` is f32 or f64 (`Real` is private), which gemm supports.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Philox;

    /// 2^63 x 2 elements are 0 in 64 bits, and an empty slice must not pass for them.
    #[test]
    #[should_panic(expected = "a 9223372036854775808 x 2 matrix")]
    fn sizes_beyond_the_address_space_do_not_fit() {
        Matrix::<f32>::new(&[], 1 << 63, 2);
    }

    #[test]
    #[should_panic(expected = "a 9223372036854775808 x 2 product")]
    fn products_beyond_the_address_space_do_not_fit() {
        let (a, b) = (Matrix::<f32>::new(&[], 1 << 63, 0), Matrix::new(&[], 0, 2));
        matmul(&mut [], false, a, b);
    }

    #[test]
    fn equals_the_definition_for_plain_and_transposed_operands() {
        let mut rng = Philox::new(1, 0);
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 33, 65), (1, 40, 9), (40, 1, 9)] {
            let mut draw = |n: usize| (0..n).map(|_| rng.normal()).collect::<Vec<f64>>();
            let (a, b, start) = (draw(m * k), draw(k * n), draw(m * n));
            let transpose = |x: &[f64], rows: usize, columns: usize| -> Vec<f64> {
                (0..rows * columns).map(|i| x[(i % rows) * columns + i / rows]).collect()
            };
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            for accumulate in [false, true] {
                let expected: Vec<f64> = (0..m * n)
                    .map(|i| {
                        let sum: f64 = (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum();
                        sum + if accumulate { start[i] } else { 0.0 }
                    })
                    .collect();
                for (lhs, rhs) in [
                    (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                    (Matrix::new(&at, k, m).t(), Matrix::new(&b, k, n)),
                    (Matrix::new(&a, m, k), Matrix::new(&bt, n, k).t()),
                ] {
                    let mut out = start.clone();
                    matmul(&mut out, accumulate, lhs, rhs);
                    for (x, y) in out.iter().zip(&expected) {
                        assert!((x - y).abs() < 1e-12 * (k as f64), "{x} {y} ({m} {n} {k})");
                    }
                }
            }
        }
    }
}
