//! The teacher's output projection, for logits from hidden states.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use stillhouse_nn::Head;
use stillhouse_proto::{
    dtype::to_f32,
    v1::{DType, FetchHeadRequest, FetchHeadResponse},
};
use tonic::Request;

use super::{
    ClientError, Teacher, Wanted,
    gate::{Client, Closed, Gate},
};

/// Largest output projection that is accepted, in bytes.
const MAX_HEAD_BYTES: u64 = 8 << 30;
const REQUEST: &str = "FetchHead";

/// Fetches the head in f32 and checks its hash and whose it is. The whole may take `limit`, as the
/// server is told; each piece, no longer than any other answer.
pub(super) async fn fetch(
    gate: &Gate,
    endpoint: &str,
    (client, teacher): (&mut Client, &Teacher),
    limit: Duration,
) -> Result<Head, Closed> {
    let mut request = Request::new(FetchHeadRequest { dtype: DType::F32.into() });
    request.set_timeout(limit);
    let opened = gate.within(endpoint, REQUEST, client.fetch_head(request)).await?;
    let mut pieces = opened.into_inner();
    let mut assembly = Assembly::new(&gate.wanted, teacher);
    let refused = |reason| {
        Closed::ForGood(ClientError::Answer {
            endpoint: endpoint.to_owned(),
            request: REQUEST.to_owned(),
            reason,
        })
    };
    loop {
        match gate.within(endpoint, REQUEST, pieces.message()).await? {
            Some(piece) => {
                gate.same_fingerprint(endpoint, &piece.fingerprint).map_err(Closed::ForGood)?;
                assembly.add(&piece).map_err(refused)?;
            }
            None => return assembly.finish().map_err(refused),
        }
    }
}

/// A head in the making.
#[derive(Debug)]
struct Assembly {
    classes: usize,
    hidden_size: usize,
    has_bias: bool,
    softcap: Option<f32>,
    bytes: Vec<u8>,
    sha256: Vec<u8>,
}

impl Assembly {
    fn new(wanted: &Wanted, teacher: &Teacher) -> Self {
        Self {
            classes: wanted.classes,
            hidden_size: teacher.hidden_size,
            has_bias: false,
            softcap: None,
            bytes: Vec::new(),
            sha256: Vec::new(),
        }
    }

    /// Bytes of the whole, which follow from the sizes.
    fn expected_bytes(&self) -> u64 {
        let (classes, hidden) = (self.classes as u64, self.hidden_size as u64);
        let weights = classes.saturating_mul(hidden);
        weights.saturating_add(if self.has_bias { classes } else { 0 }).saturating_mul(4)
    }

    /// Takes the next piece. Memory grows with the bytes that came.
    fn add(&mut self, piece: &FetchHeadResponse) -> Result<(), String> {
        if self.bytes.is_empty() {
            self.has_bias = piece.has_bias;
            let cap = piece.logit_softcap;
            if !(cap.is_finite() && cap >= 0.0) {
                return Err(format!("logit_softcap is {cap}, expected a finite number, 0 or more"));
            }
            self.softcap = (cap > 0.0).then_some(cap);
        }
        let shape = [self.classes as u64, self.hidden_size as u64];
        if piece.weight_shape != shape {
            return Err(format!("weight_shape is {:?}, expected {shape:?}", piece.weight_shape));
        }
        if piece.dtype() != DType::F32 {
            return Err(format!("dtype is {:?}, expected F32", piece.dtype()));
        }
        let (total, expected) = (piece.total_bytes, self.expected_bytes());
        if total != expected || total > MAX_HEAD_BYTES {
            let most = expected.min(MAX_HEAD_BYTES);
            return Err(format!("total_bytes is {total}, expected {most}"));
        }
        let at = self.bytes.len() as u64;
        if piece.offset != at || piece.data.len() as u64 > total - at {
            let length = piece.data.len();
            return Err(format!(
                "a piece of {length} bytes at offset {}, expected at most {} at {at}",
                piece.offset,
                total - at
            ));
        }
        self.bytes.extend_from_slice(&piece.data);
        self.sha256 = piece.sha256.to_vec();
        Ok(())
    }

    fn finish(self) -> Result<Head, String> {
        let (found, expected) = (self.bytes.len() as u64, self.expected_bytes());
        if found != expected || found == 0 {
            return Err(format!("it ended after {found} of {expected} bytes"));
        }
        if Sha256::digest(&self.bytes).as_slice() != self.sha256 {
            return Err("its SHA-256 is not that of the last piece".to_owned());
        }
        let mut weight = to_f32(DType::F32, &self.bytes);
        let bias = self.has_bias.then(|| weight.split_off(self.classes * self.hidden_size));
        Ok(Head {
            weight,
            bias,
            classes: self.classes,
            hidden_size: self.hidden_size,
            softcap: self.softcap,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(bytes: &[u8]) -> Vec<FetchHeadResponse> {
        let first = FetchHeadResponse {
            weight_shape: vec![2, 3],
            has_bias: true,
            dtype: DType::F32.into(),
            total_bytes: bytes.len() as u64,
            ..FetchHeadResponse::default()
        };
        let mut pieces: Vec<_> = bytes
            .chunks(20)
            .zip(0..)
            .map(|(data, number)| FetchHeadResponse {
                offset: number * 20,
                data: data.to_vec().into(),
                ..first.clone()
            })
            .collect();
        pieces.last_mut().unwrap().sha256 = Sha256::digest(bytes).to_vec().into();
        pieces
    }

    fn assemble(pieces: &[FetchHeadResponse]) -> Result<Head, String> {
        let mut assembly = Assembly {
            classes: 2,
            hidden_size: 3,
            has_bias: false,
            softcap: None,
            bytes: Vec::new(),
            sha256: Vec::new(),
        };
        pieces.iter().try_for_each(|piece| assembly.add(piece))?;
        assembly.finish()
    }

    fn bytes() -> Vec<u8> {
        (0_u8..8).flat_map(|value| f32::from(value).to_le_bytes()).collect()
    }

    #[test]
    fn pieces_make_a_head() {
        let head = assemble(&pieces(&bytes())).unwrap();
        assert_eq!(head.weight, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(head.bias, Some(vec![6.0, 7.0]));
    }

    #[test]
    fn what_is_missing_doubled_or_changed_is_an_error() {
        let whole = pieces(&bytes());
        assert!(assemble(&whole[1..]).unwrap_err().contains("offset 20, expected at most 32 at 0"));
        assert!(assemble(&whole[..1]).unwrap_err().contains("ended after 20 of 32 bytes"));
        assert!(assemble(&[&whole[..], &whole[1..]].concat()).is_err());
        let mut changed = whole.clone();
        changed[0].data = vec![9; 20].into();
        assert!(assemble(&changed).unwrap_err().contains("SHA-256"));
        let mut other = whole.clone();
        other[0].weight_shape = vec![2, 4];
        assert!(assemble(&other).unwrap_err().contains("weight_shape is [2, 4], expected [2, 3]"));
        let mut claims = whole;
        claims[0].total_bytes = u64::MAX;
        assert!(assemble(&claims).unwrap_err().contains("total_bytes"));
    }
}
