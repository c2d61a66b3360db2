//! Values that must never be shown, and the keys derived from them.
//!
//! Everything secret in this program (the PAT, the webhook secret, JIT
//! configurations, registration tokens, VM secrets) is a [`Secret`]: it prints
//! as `***`, so that no log line, error or `Debug` print can leak it by
//! accident. Reading one takes a call to [`Secret::expose`], which is easy to
//! search for.

use hmac::{Hmac, KeyInit, Mac};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::Sha256;
use std::fmt;
use std::io;

/// A string that prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret value.
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    /// 256 random bits, in lower-case hex.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> io::Result<Secret> {
        let mut bits = [0; 32];
        SystemRandom::new()
            .fill(&mut bits)
            .map_err(|_| io::Error::other("the system gives no randomness"))?;
        Ok(Secret(encode_hex(&bits)))
    }

    /// The value itself, for the one place that has to send or compare it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this is the value. Compares in constant time.
    pub fn is(&self, presented: &[u8]) -> bool {
        let mac = |value: &[u8]| keyed(b"compare").chain_update(value);
        mac(self.0.as_bytes()).verify_slice(&mac(presented).finalize().into_bytes()).is_ok()
    }

    /// The text with `***` in place of this value, also where the value is
    /// broken over lines, as PowerShell does with error texts at the width of
    /// its console.
    pub fn redact(&self, text: &str) -> String {
        let mut redacted = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            match self.after_value(rest) {
                Some(after) => {
                    redacted.push_str("***");
                    rest = after;
                }
                None => {
                    redacted.push(c);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        redacted
    }

    /// What follows the value with which `text` begins.
    fn after_value<'a>(&self, text: &'a str) -> Option<&'a str> {
        let mut rest = text.strip_prefix(self.0.chars().next()?)?;
        for c in self.0.chars().skip(1) {
            rest = rest.trim_start().strip_prefix(c)?;
        }
        Some(rest)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Verifies GitHub's webhook signatures and makes the secrets of VMs.
///
/// Both come from `WEBHOOK_SECRET`, or without one from a key that the pool has
/// made ([`crate::vm_key`]), so a restarted pool knows the VMs that it left
/// running.
#[derive(Clone)]
pub struct Keys {
    webhook: Hmac<Sha256>,
    vm_callback: Hmac<Sha256>,
}

impl Keys {
    /// Derives the keys: the secret itself for webhooks, and
    /// `HMAC-SHA256(secret, "vm-callback")` for the VMs.
    pub fn new(secret: &Secret) -> Keys {
        let webhook = keyed(secret.expose().as_bytes());
        let vm_callback = keyed(&webhook.clone().chain_update("vm-callback").finalize().into_bytes());
        Keys { webhook, vm_callback }
    }

    /// Whether `signature` (the value of `X-Hub-Signature-256`, `sha256=` and
    /// 64 hex digits) is the signature of `body`. Compares in constant time.
    ///
    /// <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>
    pub fn webhook_signature_is_valid(&self, body: &[u8], signature: &[u8]) -> bool {
        let Some(digest) = signature.strip_prefix(b"sha256=").and_then(decode_hex) else {
            return false;
        };
        self.webhook.clone().chain_update(body).verify_slice(&digest).is_ok()
    }

    /// The `X-Hub-Signature-256` value of `body`, as GitHub would send it.
    /// Used by the simulated GitHub.
    pub fn sign_webhook(&self, body: &[u8]) -> String {
        format!("sha256={}", encode_hex(&self.webhook.clone().chain_update(body).finalize().into_bytes()))
    }

    /// The secret of one incarnation of a VM, in lower-case hex.
    pub fn vm_secret(&self, vm_name: &str, incarnation: &str) -> Secret {
        let mac = self.vm_callback.clone().chain_update(vm_name).chain_update("/").chain_update(incarnation);
        Secret(encode_hex(&mac.finalize().into_bytes()))
    }

    /// Whether a request proves that it comes from this incarnation of the VM.
    /// Compares in constant time.
    pub fn vm_is_proven(&self, vm_name: &str, incarnation: &str, proof: &Proof) -> bool {
        decode_hex(proof.digest).is_some_and(|digest| {
            let secret = self.vm_secret(vm_name, incarnation);
            vm_mac(&secret, proof.method, proof.path).verify_slice(&digest).is_ok()
        })
    }
}

/// What a request presents as proof of the VM from which it comes.
#[derive(Clone, Copy, Debug)]
pub struct Proof<'a> {
    /// The request's method.
    pub method: &'a str,
    /// The request's path, as it was sent.
    pub path: &'a str,
    /// What it presents: see [`vm_proof`].
    pub digest: &'a [u8],
}

/// What a guest sends as `Authorization: Bearer`:
/// `HMAC-SHA256(VM secret, METHOD + " " + path)` in lower-case hex. So the
/// secret itself never crosses the network, and who overhears a proof can only
/// repeat that request.
pub fn vm_proof(vm_secret: &Secret, method: &str, path: &str) -> String {
    encode_hex(&vm_mac(vm_secret, method, path).finalize().into_bytes())
}

fn vm_mac(vm_secret: &Secret, method: &str, path: &str) -> Hmac<Sha256> {
    keyed(vm_secret.expose().as_bytes()).chain_update(method).chain_update(" ").chain_update(path)
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(***)")
    }
}

#[allow(clippy::expect_used, reason = "HMAC takes a key of any length: RFC 2104, section 2")]
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// Bytes in lower-case hex.
pub(crate) fn encode_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The 32 bytes of a SHA-256 digest in hex; `None` for any other length or digit.
fn decode_hex(hex: &[u8]) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16)?;
        let low = (pair[1] as char).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_its_value() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert!(!format!("{:?}", Keys::new(&secret)).contains("hunter2"));
    }

    #[test]
    fn a_secret_is_cut_out_even_if_broken_over_lines() {
        let secret = Secret::new("0123456789abcdef");
        let text = secret.redact("a 0123456789abcdef b 01234567\r\n  89abcdef c 0123456789abcdeX");
        assert_eq!(text, "a *** b *** c 0123456789abcdeX");
        assert_eq!(Secret::new("").redact("text"), "text");
    }

    #[test]
    fn only_the_value_itself_is_the_value() {
        let secret = Secret::new("0123");
        assert!(secret.is(b"0123"));
        for other in ["", "012", "01234", "0124"] {
            assert!(!secret.is(other.as_bytes()), "{other}");
        }
    }

    /// The example in GitHub's documentation of webhook signatures.
    #[test]
    fn githubs_documented_signature_is_accepted_and_reproduced() {
        let keys = Keys::new(&Secret::new("It's a Secret to Everybody"));
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(keys.webhook_signature_is_valid(b"Hello, World!", signature.as_bytes()));
        assert_eq!(keys.sign_webhook(b"Hello, World!"), signature);
    }

    #[test]
    fn a_signature_of_any_other_length_digit_or_body_is_refused() {
        let keys = Keys::new(&Secret::new("s"));
        let good = keys.sign_webhook(b"body");
        assert!(!keys.webhook_signature_is_valid(b"bodY", good.as_bytes()));
        for length in 0..good.len() {
            assert!(!keys.webhook_signature_is_valid(b"body", &good.as_bytes()[..length]), "length {length}");
        }
        assert!(!keys.webhook_signature_is_valid(b"body", format!("{good}0").as_bytes()));
        assert!(!keys.webhook_signature_is_valid(b"body", good.replace("sha256=", "sha1=").as_bytes()));
        let mut not_hex = good.into_bytes();
        not_hex[10] = b'g';
        assert!(!keys.webhook_signature_is_valid(b"body", &not_hex));
    }

    #[test]
    fn a_proof_fits_one_vm_one_incarnation_one_method_and_one_path_only() {
        let keys = Keys::new(&Secret::new("s"));
        let secret = keys.vm_secret("runner-1", "a1");
        let digest = vm_proof(&secret, "GET", "/a");
        let proof = Proof { method: "GET", path: "/a", digest: digest.as_bytes() };
        assert!(keys.vm_is_proven("runner-1", "a1", &proof));
        assert!(!keys.vm_is_proven("runner-2", "a1", &proof));
        assert!(!keys.vm_is_proven("runner-1", "a2", &proof));
        assert!(!keys.vm_is_proven("runner-1", "a1", &Proof { method: "POST", ..proof }));
        assert!(!keys.vm_is_proven("runner-1", "a1", &Proof { path: "/b", ..proof }));
        assert!(!Keys::new(&Secret::new("t")).vm_is_proven("runner-1", "a1", &proof));
        let bare = Proof { digest: secret.expose().as_bytes(), ..proof };
        assert!(!keys.vm_is_proven("runner-1", "a1", &bare), "the secret itself is no proof");
    }
}
