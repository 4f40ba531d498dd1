//! Dropout whose mask is a function of a seeked random stream.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, WithDType};

use crate::kernel::{dropout::Rule, real::Real, storage};
use crate::rng::Philox;

/// Sets each element of `input` to 0 with probability `p` and multiplies the others by 1 / (1 - p)
/// (Srivastava et al., 2014). Takes one word of `rng` an element, in row-major order, so that the
/// masks of a resumed run are those of the run it resumes. Nothing happens, and no word is taken,
/// at p = 0.
///
/// # Errors
///
/// If `input` is not a contiguous f32 or f64 tensor on the CPU.
pub fn dropout(input: &Tensor, p: f32, rng: &mut Philox) -> Result<Tensor> {
    if p == 0.0 {
        return Ok(input.clone());
    }
    let Rule { threshold, scale } = Rule::new(p);
    let keep = (0..input.elem_count()).map(|_| u64::from(rng.next_u32()) >= threshold).collect();
    input.apply_op1(Dropout { keep, scale })
}

struct Dropout {
    keep: Vec<bool>,
    scale: f64,
}

impl Dropout {
    fn masked<T: Real>(&self, values: &[T]) -> Vec<T> {
        let scale = T::from_f64(self.scale);
        let choose = |(&x, &keep): (&T, &bool)| if keep { x * scale } else { T::zero() };
        values.iter().zip(&self.keep).map(choose).collect()
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match input.dtype() {
            DType::F32 => {
                CpuStorage::F32(self.masked(storage::contiguous(input, layout, self.name())?))
            }
            DType::F64 => {
                CpuStorage::F64(self.masked(storage::contiguous(input, layout, self.name())?))
            }
            other => return storage::unsupported(self.name(), other),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, input: &Tensor, _output: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        fn backward<T: Real + WithDType>(op: &Dropout, grad: &Tensor) -> Result<Tensor> {
            let values = storage::with_elements::<T, _>(grad, op.name(), |grad| op.masked(grad))?;
            Tensor::from_vec(values, grad.dims(), grad.device())
        }
        if !input.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        match grad.dtype() {
            DType::F32 => backward::<f32>(self, &grad).map(Some),
            DType::F64 => backward::<f64>(self, &grad).map(Some),
            other => storage::unsupported(self.name(), other),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn keeps_the_expected_share_and_scales_it() {
        let x = Tensor::ones((100, 100), DType::F32, &Device::Cpu).unwrap();
        let mut rng = Philox::new(3, 0);
        let y =
            dropout(&x, 0.2, &mut rng).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(rng.position(), 10_000);
        let kept = y.iter().filter(|&&y| y != 0.0).count();
        assert!((7_850..8_150).contains(&kept), "{kept}");
        assert!(y.iter().all(|&y| y == 0.0 || y == 1.25));
    }

    #[test]
    fn the_gradient_passes_through_the_same_mask() {
        let x = Var::new(&[1.0, -2.0, 3.0, 4.0, 5.0, 6.0], &Device::Cpu).unwrap();
        let mut rng = Philox::new(4, 0);
        let y = dropout(x.as_tensor(), 0.5, &mut rng).unwrap();
        let store = y.sum_all().unwrap().backward().unwrap();
        let (y, grad) =
            (y.to_vec1::<f64>().unwrap(), store.get(&x).unwrap().to_vec1::<f64>().unwrap());
        let x = x.to_vec1::<f64>().unwrap();
        for i in 0..6 {
            assert_eq!(y[i], x[i] * grad[i]);
            assert!(grad[i] == 0.0 || grad[i] == 2.0);
        }
        assert!(grad.contains(&0.0) && grad.contains(&2.0), "{grad:?}");
    }

    #[test]
    fn a_sought_stream_gives_the_same_mask() {
        let x = Tensor::ones(50, DType::F32, &Device::Cpu).unwrap();
        let mut rng = Philox::new(5, 1);
        dropout(&x, 0.3, &mut rng).unwrap();
        let position = rng.position();
        let first = dropout(&x, 0.3, &mut rng).unwrap().to_vec1::<f32>().unwrap();
        let mut resumed = Philox::new(5, 1);
        resumed.seek(position);
        assert_eq!(dropout(&x, 0.3, &mut resumed).unwrap().to_vec1::<f32>().unwrap(), first);
    }

    #[test]
    fn nothing_happens_at_zero() {
        let x = Tensor::ones(5, DType::F32, &Device::Cpu).unwrap();
        let mut rng = Philox::new(5, 1);
        assert_eq!(dropout(&x, 0.0, &mut rng).unwrap().id(), x.id());
        assert_eq!(rng.position(), 0);
    }
}
