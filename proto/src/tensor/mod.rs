//! Tensors on the wire: a checked view that copies nothing, and constructors.

mod build;
mod error;

use bytes::Bytes;
pub use error::TensorError;

use crate::{
    dtype::to_f32,
    v1::{DType, Tensor},
};

/// Most dimensions a tensor may have.
pub const MAX_DIMENSIONS: usize = 8;

/// A [`Tensor`] whose type, shape and length agree. Borrows the message; copies nothing.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: &'a [u64],
    data: &'a Bytes,
    /// Elements for each index of the first dimension; 1 for fewer than two dimensions.
    width: usize,
}

impl<'a> TensorView<'a> {
    /// Checks `tensor`: a known type, at most 8 dimensions of at least 1 each, and exactly the bytes
    /// that they need.
    ///
    /// # Errors
    ///
    /// [`TensorError`] for the first thing that is wrong.
    pub fn new(tensor: &'a Tensor) -> Result<Self, TensorError> {
        match tensor.shape.first() {
            Some(0) => Err(TensorError::EmptyDimension { index: 0 }),
            _ => Self::with_any_rows(tensor),
        }
    }

    /// As [`TensorView::new`], with a first dimension that may be 0: labels of a batch in which no
    /// row could be labelled.
    pub(crate) fn with_any_rows(tensor: &'a Tensor) -> Result<Self, TensorError> {
        let dtype = DType::try_from(tensor.dtype).unwrap_or(DType::Unspecified);
        let Some(size) = dtype.size() else {
            let value = match DType::try_from(tensor.dtype) {
                Ok(dtype) => dtype.name().to_owned(),
                Err(_) => tensor.dtype.to_string(),
            };
            return Err(TensorError::DType { value, accepted: "f32, f16, bf16 or u8" });
        };
        let (elements, width) = measure(&tensor.shape)?;
        let expected = elements.checked_mul(size).filter(|bytes| isize::try_from(*bytes).is_ok());
        let Some(expected) = expected else {
            return Err(TensorError::Overflow { shape: tensor.shape.clone() });
        };
        if tensor.data.len() != expected {
            return Err(TensorError::Length {
                bytes: tensor.data.len(),
                expected,
                dtype: dtype.name(),
                shape: tensor.shape.clone(),
            });
        }
        Ok(Self { dtype, shape: &tensor.shape, data: &tensor.data, width })
    }

    /// Element type; never `Unspecified`.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &'a [u64] {
        self.shape
    }

    /// The elements, little-endian and row-major.
    pub fn data(&self) -> &'a Bytes {
        self.data
    }

    /// Size of the first dimension; 1 for a scalar.
    pub fn rows(&self) -> usize {
        // In range: the shape was measured in `usize`.
        self.shape.first().map_or(1, |rows| *rows as usize)
    }

    /// Elements in one row: the product of all dimensions but the first.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows and width of a tensor that must have exactly two dimensions.
    ///
    /// # Errors
    ///
    /// [`TensorError::Rank`] if it has not.
    pub fn matrix(&self) -> Result<(usize, usize), TensorError> {
        match self.shape.len() {
            2 => Ok((self.rows(), self.width)),
            rank => Err(TensorError::Rank { rank, accepted: "2" }),
        }
    }

    /// Checks that the shape is `expected`.
    ///
    /// # Errors
    ///
    /// [`TensorError::Shape`] if it is not.
    pub fn expect_shape(&self, expected: &[usize]) -> Result<(), TensorError> {
        let same = |(size, expected): (&u64, &usize)| *size == *expected as u64;
        if self.shape.len() == expected.len() && self.shape.iter().zip(expected).all(same) {
            return Ok(());
        }
        Err(TensorError::Shape {
            shape: self.shape.to_vec(),
            expected: expected.iter().map(|size| *size as u64).collect(),
        })
    }

    /// All elements as `f32`, row-major; `U8` as 0 to 255.
    pub fn to_f32(&self) -> Vec<f32> {
        to_f32(self.dtype, self.data)
    }

    /// The elements as they are, if they are `U8`.
    pub fn as_u8(&self) -> Option<&'a [u8]> {
        (self.dtype == DType::U8).then_some(self.data)
    }

    /// Bytes of one row; `None` past the last.
    pub fn row(&self, row: usize) -> Option<&'a [u8]> {
        let bytes = self.width * self.dtype.size()?;
        let start = row.checked_mul(bytes)?;
        (row < self.rows()).then(|| self.data.get(start..start + bytes))?
    }

    /// One row as `f32`; `None` past the last.
    pub fn row_to_f32(&self, row: usize) -> Option<Vec<f32>> {
        self.row(row).map(|bytes| to_f32(self.dtype, bytes))
    }
}

/// Elements of a shape, and those of one row. Only the first dimension may be 0.
fn measure(shape: &[u64]) -> Result<(usize, usize), TensorError> {
    if shape.len() > MAX_DIMENSIONS {
        return Err(TensorError::Rank { rank: shape.len(), accepted: "at most 8" });
    }
    let (rows, rest) = shape.split_first().map_or((1, shape), |(rows, rest)| (*rows, rest));
    if let Some(index) = rest.iter().position(|size| *size == 0) {
        return Err(TensorError::EmptyDimension { index: index + 1 });
    }
    let times = |product: usize, size: u64| product.checked_mul(usize::try_from(size).ok()?);
    rest.iter()
        .try_fold(1, |product, size| times(product, *size))
        .and_then(|width| Some((times(width, rows)?, width)))
        .ok_or_else(|| TensorError::Overflow { shape: shape.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: DType, shape: &[u64], bytes: usize) -> Tensor {
        Tensor { dtype: dtype.into(), shape: shape.to_vec(), data: vec![0; bytes].into() }
    }

    fn refusal(tensor: &Tensor) -> String {
        TensorView::new(tensor).unwrap_err().to_string()
    }

    #[test]
    fn rows_are_slices_of_the_message() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let tensor = Tensor::from_f32(&values, DType::F16, &[2, 3]).unwrap();
        let view = TensorView::new(&tensor).unwrap();
        assert_eq!(view.matrix(), Ok((2, 3)));
        assert_eq!(view.to_f32(), values);
        assert_eq!(view.row_to_f32(1).unwrap(), [4.0, 5.0, 6.0]);
        assert_eq!(view.row(1).unwrap().as_ptr(), tensor.data[6..].as_ptr(), "not a copy");
        assert_eq!(view.row(2), None);
        assert_eq!(view.row(usize::MAX), None);
        assert_eq!(view.as_u8(), None);
    }

    #[test]
    fn bytes_are_taken_as_they_are() {
        let tensor = Tensor::from_u8(vec![0, 7, 255], &[3, 1]).unwrap();
        let view = TensorView::new(&tensor).unwrap();
        assert_eq!(view.as_u8(), Some(&[0, 7, 255][..]));
        assert_eq!(view.to_f32(), [0.0, 7.0, 255.0]);
        assert!(Tensor::from_u8(vec![0, 7, 255], &[2, 1]).is_err());
    }

    #[test]
    fn a_scalar_is_one_row_of_one() {
        let scalar = tensor(DType::F32, &[], 4);
        let view = TensorView::new(&scalar).unwrap();
        assert_eq!((view.rows(), view.width()), (1, 1));
        assert_eq!(view.matrix(), Err(TensorError::Rank { rank: 0, accepted: "2" }));
    }

    #[test]
    fn refusals_name_the_field_the_value_and_the_range() {
        let mut unknown = tensor(DType::F32, &[1], 4);
        unknown.dtype = 77;
        assert_eq!(refusal(&unknown), "dtype is 77; must be f32, f16, bf16 or u8");
        assert_eq!(
            refusal(&tensor(DType::Unspecified, &[1], 4)),
            "dtype is unspecified; must be f32, f16, bf16 or u8"
        );
        assert_eq!(
            refusal(&tensor(DType::U8, &[1; 9], 1)),
            "shape has 9 dimensions; must have at most 8"
        );
        assert_eq!(refusal(&tensor(DType::U8, &[0, 2], 0)), "shape[0] is 0; must be at least 1");
        assert_eq!(refusal(&tensor(DType::U8, &[2, 0], 0)), "shape[1] is 0; must be at least 1");
        assert_eq!(
            refusal(&tensor(DType::F32, &[2, 3], 23)),
            "data has 23 bytes; f32 of shape [2, 3] needs exactly 24"
        );
    }

    /// Declared sizes that multiply past the machine's word, or past its address space.
    #[test]
    fn huge_shapes_are_refused_without_memory() {
        for shape in [&[u64::MAX][..], &[1 << 32, 1 << 32], &[1, 1 << 62, 2], &[1 << 61, 1]] {
            let error = TensorView::new(&tensor(DType::F32, shape, 0)).unwrap_err();
            assert!(matches!(error, TensorError::Overflow { .. }), "{shape:?}: {error}");
        }
        let error = TensorView::new(&tensor(DType::F32, &[1 << 32, 1 << 20], 4)).unwrap_err();
        assert!(matches!(error, TensorError::Length { .. }), "{error}");
    }

    #[test]
    fn what_the_type_cannot_hold_is_refused() {
        for (value, dtype) in [
            (1e5, DType::F16),
            (-1e5, DType::F16),
            (f32::MAX, DType::Bf16),
            (f32::NAN, DType::F32),
            (f32::INFINITY, DType::F32),
            (f32::NEG_INFINITY, DType::F32),
        ] {
            let error = Tensor::from_f32(&[0.0, value], dtype, &[2]).unwrap_err();
            assert!(matches!(error, TensorError::Value { index: 1, .. }), "{error}");
        }
        assert!(Tensor::from_f32(&[1.0], DType::U8, &[1]).is_err());
        assert!(Tensor::from_f32(&[], DType::F32, &[0, 1]).is_err());
    }
}
