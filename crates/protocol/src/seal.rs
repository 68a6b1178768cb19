//! The only place that encrypts: XChaCha20-Poly1305 under keys derived from the cluster key.
//!
//! ```text
//!   sealed = nonce (24 bytes, random, drawn by the caller) || ciphertext || tag (16 bytes)
//! ```
//!
//! The random nonce derives a subkey, so every message has a key of its own. The associated data binds
//! cluster, channel, sender, receiver and protocol version: a message sealed for one of them opens for no
//! other, and a server's own message sent back to it does not open either. Replay is not refused here
//! but by sequence: `heartbeat` for packets, `link` for frames.

use crate::ids::ServerName;
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use sha2::Sha256;
use std::fmt;

/// Bytes of a nonce.
pub const NONCE: usize = 24;

/// Bytes that sealing adds: nonce and tag.
pub const OVERHEAD: usize = NONCE + 16;

/// Over what a message travels; a packet cannot be passed off as a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Heartbeats.
    Udp,
    /// Signals.
    Tcp,
}

/// What a sealed message is bound to, besides the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The version of the protocol.
    pub version: u8,
    /// Over what it travels.
    pub channel: Channel,
    /// Who seals.
    pub from: &'a ServerName,
    /// Who opens.
    pub to: &'a ServerName,
}

/// Why bytes did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Fewer bytes than nonce and tag need.
    TooShort,
    /// Made with another key, for another context, or changed on the way.
    Unauthentic,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort => "too short to be sealed",
            Self::Unauthentic => "not sealed with a key of this cluster, or changed on the way",
        })
    }
}

impl std::error::Error for OpenError {}

/// Seals with the first key and opens with each, so that keys can be changed one server at a time.
#[derive(Clone)]
pub struct Sealer {
    ciphers: Vec<XChaCha20Poly1305>,
    cluster: String,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("cluster", &self.cluster)
            .field("keys", &self.ciphers.len())
            .finish()
    }
}

impl Sealer {
    /// For the named cluster. The first key seals, all open.
    ///
    /// # Panics
    /// If `keys` is empty: the caller read no cluster key and must not get this far.
    pub fn new(keys: &[[u8; 32]], cluster: &str) -> Self {
        assert!(!keys.is_empty(), "a sealer needs a cluster key");
        Self {
            ciphers: keys.iter().map(cipher).collect(),
            cluster: cluster.to_owned(),
        }
    }

    /// Seals `plain`. `nonce` is random and never used again.
    pub fn seal(&self, context: &Context<'_>, nonce: [u8; NONCE], plain: &[u8]) -> Vec<u8> {
        let aad = self.associated(context);
        let payload = Payload {
            msg: plain,
            aad: &aad,
        };
        let mut sealed = Vec::with_capacity(OVERHEAD + plain.len());
        sealed.extend_from_slice(&nonce);
        // Fails only for more than 256 GiB, which no caller has.
        if let Ok(text) = self.ciphers[0].encrypt(&XNonce::from(nonce), payload) {
            sealed.extend_from_slice(&text);
        }
        sealed
    }

    /// Opens what [`Sealer::seal`] made for the same context with one of the keys.
    pub fn open(&self, context: &Context<'_>, bytes: &[u8]) -> Result<Vec<u8>, OpenError> {
        if bytes.len() < OVERHEAD {
            return Err(OpenError::TooShort);
        }
        let (nonce, text) = bytes
            .split_first_chunk::<NONCE>()
            .ok_or(OpenError::TooShort)?;
        let (nonce, aad) = (XNonce::from(*nonce), self.associated(context));
        self.ciphers
            .iter()
            .find_map(|c| {
                c.decrypt(
                    &nonce,
                    Payload {
                        msg: text,
                        aad: &aad,
                    },
                )
                .ok()
            })
            .ok_or(OpenError::Unauthentic)
    }

    /// Length before every text, so that no two contexts read alike.
    fn associated(&self, context: &Context<'_>) -> Vec<u8> {
        let channel = match context.channel {
            Channel::Udp => 1,
            Channel::Tcp => 2,
        };
        let mut aad = vec![context.version, channel];
        for text in [
            self.cluster.as_str(),
            context.from.as_str(),
            context.to.as_str(),
        ] {
            aad.extend_from_slice(&(text.len() as u64).to_le_bytes());
            aad.extend_from_slice(text.as_bytes());
        }
        aad
    }
}

fn cipher(cluster_key: &[u8; 32]) -> XChaCha20Poly1305 {
    let mut key = [0; 32];
    let expanded = Hkdf::<Sha256>::new(Some(b"standin"), cluster_key).expand(b"seal", &mut key);
    assert!(expanded.is_ok(), "HKDF-SHA256 gives up to 8160 bytes");
    XChaCha20Poly1305::new(&key.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NONCE_1: [u8; NONCE] = [7; NONCE];

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }

    fn udp<'a>(from: &'a ServerName, to: &'a ServerName) -> Context<'a> {
        Context {
            version: 1,
            channel: Channel::Udp,
            from,
            to,
        }
    }

    #[test]
    fn opens_what_it_sealed() {
        let (a, b) = (name("alpha"), name("beta"));
        let sealer = Sealer::new(&[[1; 32]], "web");
        for plain in [&b""[..], b"x", &[0; 9000]] {
            let sealed = sealer.seal(&udp(&a, &b), NONCE_1, plain);
            assert_eq!(sealed.len(), plain.len() + OVERHEAD);
            assert_eq!(sealer.open(&udp(&a, &b), &sealed).unwrap(), plain);
        }
    }

    #[test]
    fn opens_for_no_other_context() {
        let (a, b, c) = (name("alpha"), name("beta"), name("gamma"));
        let sealer = Sealer::new(&[[1; 32]], "web");
        let sealed = sealer.seal(&udp(&a, &b), NONCE_1, b"beat");
        let (mut tcp, mut newer) = (udp(&a, &b), udp(&a, &b));
        tcp.channel = Channel::Tcp;
        newer.version = 2;
        for context in [udp(&b, &a), udp(&a, &c), udp(&c, &b), tcp, newer] {
            assert_eq!(sealer.open(&context, &sealed), Err(OpenError::Unauthentic));
        }
        for other in [
            Sealer::new(&[[1; 32]], "mail"),
            Sealer::new(&[[2; 32]], "web"),
        ] {
            assert_eq!(
                other.open(&udp(&a, &b), &sealed),
                Err(OpenError::Unauthentic)
            );
        }
    }

    #[test]
    fn names_cannot_slide_into_each_other() {
        let sealer = Sealer::new(&[[1; 32]], "web");
        let sealed = sealer.seal(&udp(&name("ab"), &name("c")), NONCE_1, b"beat");
        assert!(sealer.open(&udp(&name("a"), &name("bc")), &sealed).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let (a, b) = (name("alpha"), name("beta"));
        let sealer = Sealer::new(&[[1; 32]], "web");
        let sealed = sealer.seal(&udp(&a, &b), NONCE_1, b"beat");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open(&udp(&a, &b), &bad), Err(OpenError::Unauthentic));
        }
        for cut in 0..sealed.len() {
            assert!(sealer.open(&udp(&a, &b), &sealed[..cut]).is_err());
        }
    }

    #[test]
    fn two_keys_live_at_once_allow_a_rolling_change() {
        let (a, b) = (name("alpha"), name("beta"));
        let (old, new) = ([1; 32], [2; 32]);
        let steps = [vec![old], vec![old, new], vec![new, old], vec![new]];
        for pair in steps.windows(2) {
            let (x, y) = (Sealer::new(&pair[0], "web"), Sealer::new(&pair[1], "web"));
            let there = x.seal(&udp(&a, &b), NONCE_1, b"beat");
            let back = y.seal(&udp(&b, &a), NONCE_1, b"ack");
            assert_eq!(y.open(&udp(&a, &b), &there).unwrap(), b"beat");
            assert_eq!(x.open(&udp(&b, &a), &back).unwrap(), b"ack");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", Sealer::new(&[[0xab; 32]], "web"));
        assert_eq!(shown, "Sealer { cluster: \"web\", keys: 1 }");
    }
}
