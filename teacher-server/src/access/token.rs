//! Bearer tokens: 256 random bits each, of which the server keeps the SHA-256.
//!
//! A hash without salt or stretching is enough for a token that nobody can guess; a word that a person
//! has chosen is none.

use std::fmt;

use sha2::{Digest as _, Sha256};
use stillhouse_runtime::tls;
use subtle::ConstantTimeEq as _;

use crate::hex::hex;

/// What every token starts with, so that scanners for secrets find one that is where it should not.
const PREFIX: &str = "stillhouse_";
/// What its hash is written with.
const HASH_PREFIX: &str = "sha256:";
/// Bytes of the longest token that is looked at.
const MAX_BYTES: usize = 4096;

/// The SHA-256 of a token.
#[derive(Clone, Copy)]
pub(crate) struct TokenHash([u8; 32]);

/// Hides what it is made of, too: who has a hash can look for its token.
impl fmt::Debug for TokenHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenHash")
    }
}

impl TokenHash {
    /// Of a token that somebody has sent; none of one that is too long to be one.
    pub(crate) fn of(token: &[u8]) -> Option<Self> {
        (!token.is_empty() && token.len() <= MAX_BYTES).then(|| Self(Sha256::digest(token).into()))
    }

    /// Reads `sha256:` and 64 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        digest(text.strip_prefix(HASH_PREFIX)?).map(Self)
    }

    /// Whether they are the same, in a time that does not tell how much of them is.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// Reads 64 hexadecimal digits.
pub(super) fn digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

/// A new token, and its hash as the list of clients takes it; none if the system has no random
/// numbers to give.
pub fn new_token() -> Option<(String, String)> {
    let token = format!("{PREFIX}{}", hex(&tls::random::<32>()?));
    let hash: [u8; 32] = Sha256::digest(&token).into();
    Some((token, format!("{HASH_PREFIX}{}", hex(&hash))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        let (token, hash) = new_token().unwrap();
        assert!(token.starts_with(PREFIX) && token.len() == PREFIX.len() + 64);
        let kept = TokenHash::parse(&hash).unwrap();
        assert!(kept.is(&TokenHash::of(token.as_bytes()).unwrap()));
        assert!(!kept.is(&TokenHash::of(new_token().unwrap().0.as_bytes()).unwrap()));
        assert_eq!(format!("{kept:?}"), "TokenHash");
        // As `printf %s abc | sha256sum` has it.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(TokenHash::parse(abc).unwrap().is(&TokenHash::of(b"abc").unwrap()));
    }

    #[test]
    fn what_is_no_hash_or_no_token_is_none() {
        for text in ["", "sha256:", "sha256:00", &"0".repeat(64), "sha1:00"] {
            assert!(TokenHash::parse(text).is_none(), "{text}");
        }
        assert!(TokenHash::parse(&format!("sha256:{}é", "0".repeat(62))).is_none());
        assert!(TokenHash::of(b"").is_none());
        assert!(TokenHash::of(&[b'a'; MAX_BYTES + 1]).is_none());
    }
}
