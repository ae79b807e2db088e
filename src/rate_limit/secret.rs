//! The secret with which keys are hashed.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

use siphasher::sip128::{Hasher128, SipHasher24};

use super::quota::ConfigError;

/// Fewer bytes could be guessed.
const MIN_LENGTH: usize = 16;

/// A secret of the application. Keys such as tokens are hashed with it (SipHash-2-4, 128 bits), so that neither Redis nor
/// a memory dump shows them, and nobody can choose keys that meet in one slot.
///
/// Instances that count together through Redis need the same secret. Changing it starts all counts anew.
#[derive(Clone)]
pub struct Secret([u8; 16]);

impl Secret {
    /// From at least 16 bytes that nobody can guess.
    ///
    /// # Errors
    /// There are fewer than 16 bytes.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let bytes = bytes.as_ref();
        if bytes.len() < MIN_LENGTH {
            return Err(ConfigError::ShortSecret(bytes.len()));
        }
        Ok(Self(hash(*b"tower-scale key.", &[bytes]).to_be_bytes()))
    }

    /// A new one at every start: for limits that no other instance shares.
    #[must_use]
    pub fn random() -> Self {
        let word = |at: u64| u128::from(RandomState::new().hash_one(at));
        Self((word(0) << 64 | word(1)).to_be_bytes())
    }

    /// Parts are told apart by where they end, too.
    pub(crate) fn digest(&self, parts: &[&[u8]]) -> u128 {
        hash(self.0, parts)
    }
}

fn hash(key: [u8; 16], parts: &[&[u8]]) -> u128 {
    let mut hasher = SipHasher24::new_with_key(&key);
    for part in parts {
        // Not `write_u64`, whose bytes are in the machine's order: a fleet of several kinds has one digest of a key.
        hasher.write(&(part.len() as u64).to_be_bytes());
        hasher.write(part);
    }
    hasher.finish128().as_u128()
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_makes_the_digest() {
        let (one, other) = (Secret::new("a secret of some length").unwrap(), Secret::new([7; 16]).unwrap());
        assert_eq!(one.digest(&[b"token"]), Secret::new("a secret of some length").unwrap().digest(&[b"token"]));
        assert_ne!(one.digest(&[b"token"]), other.digest(&[b"token"]));
        assert_ne!(one.digest(&[b"ab", b"c"]), one.digest(&[b"a", b"bc"]));
        assert_ne!(Secret::random().digest(&[b"token"]), Secret::random().digest(&[b"token"]));
        // Instances of several versions count together.
        assert_eq!(one.digest(&[b"token"]), 12_758_780_975_618_694_329_237_418_569_586_497_357);
        assert_eq!(Secret::new("short").unwrap_err(), ConfigError::ShortSecret(5));
        assert_eq!(format!("{one:?}"), "Secret");
    }
}
