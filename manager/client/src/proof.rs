//! How a server shows that it has the token before anybody sends it the token.
//!
//! After a crash the server's port is free for whoever takes it, another user included. The client
//! names a number that nobody can foresee, and the server answers with HMAC-SHA256 (RFC 2104) of it
//! and of its own port under the token. A stranger can neither make that, nor have it made by the
//! real server: that one speaks for its own port only.

use std::io;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Random bytes in the client's number, as twice as many hex digits.
const NONCE_BYTES: usize = 24;

/// A number for one question.
pub(crate) fn nonce() -> io::Result<String> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(hex(&bytes))
}

/// `GET /v1/proof`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Proof {
    pub proof: String,
}

/// What the server on `port` answers to `nonce`, as hex.
pub fn of(token: &str, port: u16, nonce: &str) -> String {
    hex(&keyed(token, port, nonce).finalize().into_bytes())
}

/// Takes the same time wherever the first difference is.
pub fn is_right(token: &str, port: u16, nonce: &str, proof: &str) -> bool {
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = proof.as_bytes().chunks(2).map(digits).collect();
    bytes.is_some_and(|bytes| keyed(token, port, nonce).verify_slice(&bytes).is_ok())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keyed(token: &str, port: u16, nonce: &str) -> Hmac<Sha256> {
    let mut keyed = Hmac::<Sha256>::new_from_slice(token.as_bytes()).expect("any length is a key");
    keyed.update(format!("ankole proof 1\n{port}\n{nonce}").as_bytes());
    keyed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_for_one_token_one_port_and_one_number() {
        let proof = of("token", 9500, "n");
        assert!(is_right("token", 9500, "n", &proof));
        assert!(!is_right("other", 9500, "n", &proof));
        assert!(!is_right("token", 9501, "n", &proof));
        assert!(!is_right("token", 9500, "m", &proof));
        for wrong in ["", "0", "zz", &proof[2..], &format!("{proof}00")] {
            assert!(!is_right("token", 9500, "n", wrong), "{wrong}");
        }
    }
}
