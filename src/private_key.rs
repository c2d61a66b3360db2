//! The private key of a GitHub App: read from its file, never shown.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT;
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A file that is longer is no key: one of 4096 bits has 3.2 KB.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// An RSA key of 2048 to 4096 bits. Prints as `***`.
#[derive(Clone)]
pub struct PrivateKey(Arc<KeyPair>);

impl PrivateKey {
    /// Reads a PEM file, as GitHub gives it (PKCS#1) or as OpenSSL converts it (PKCS#8).
    ///
    /// # Errors
    /// The rest of a sentence that begins with the path; nothing of the file's content.
    pub fn read(path: &Path) -> Result<PrivateKey, String> {
        let unreadable = |why: std::io::Error| {
            format!("cannot be read ({why}); let this account read it, or correct the path")
        };
        // Reading a folder fails in words that name none of it.
        let file = std::fs::metadata(path).map_err(unreadable)?;
        if !file.is_file() || file.len() > MAX_FILE_BYTES {
            return Err(format!("is not a key file; {USE_GITHUBS}"));
        }
        PrivateKey::from_pem(&std::fs::read(path).map_err(unreadable)?)
    }

    fn from_pem(bytes: &[u8]) -> Result<PrivateKey, String> {
        // PEM is ASCII. What else is there is a byte-order mark, or the NUL bytes of UTF-16, which
        // `>` in Windows PowerShell 5.1 writes.
        let text: String =
            bytes.iter().filter(|b| b.is_ascii() && **b != 0).map(|b| char::from(*b)).collect();
        let no_key = || format!("is not a private key in PEM form; {USE_GITHUBS}");
        let (_, rest) = text.split_once("-----BEGIN ").ok_or_else(no_key)?;
        let (label, rest) = rest.split_once("-----").ok_or_else(no_key)?;
        let (body, _) = rest.split_once("-----END ").ok_or_else(no_key)?;
        if label == "ENCRYPTED PRIVATE KEY" || body.contains("ENCRYPTED") {
            return Err(format!("is encrypted, and nobody is there to type its passphrase; {USE_GITHUBS}"));
        }
        let read = match label {
            "RSA PRIVATE KEY" => KeyPair::from_der,
            "PRIVATE KEY" => KeyPair::from_pkcs8,
            _ if label.ends_with("PRIVATE KEY") => return Err(format!("holds no RSA key; {USE_GITHUBS}")),
            _ => return Err(no_key()),
        };
        let base64: String = body.split_ascii_whitespace().collect();
        let der =
            STANDARD_PAD_INDIFFERENT.decode(base64).map_err(|_| format!("is damaged; {USE_GITHUBS}"))?;
        // Its words: <https://docs.rs/ring/0.17/ring/error/struct.KeyRejected.html>
        read(&der).map(|pair| PrivateKey(Arc::new(pair))).map_err(|why| match &*why.to_string() {
            "WrongAlgorithm" => format!("holds no RSA key; {USE_GITHUBS}"),
            "TooSmall" => format!("holds a key of less than 2048 bits; {USE_GITHUBS}"),
            "TooLarge" => format!("holds a key of more than 4096 bits; {USE_GITHUBS}"),
            _ => format!("is damaged; {USE_GITHUBS}"),
        })
    }

    /// The RSASSA-PKCS1-v1_5 signature with SHA-256 of a text: `RS256` of RFC 7518, section 3.3.
    #[allow(
        clippy::expect_used,
        reason = "the signature's length is right, and the key was checked when it was read"
    )]
    pub fn sign(&self, text: &str) -> Vec<u8> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .expect("the signature's length is right, and the key was checked when it was read");
        signature
    }

    /// The public half, as DER of a PKCS#1 `RSAPublicKey`.
    pub fn public(&self) -> &[u8] {
        self.0.public().as_ref()
    }
}

const USE_GITHUBS: &str = "use the .pem file that GitHub makes under Private keys in the App's settings";

impl PartialEq for PrivateKey {
    fn eq(&self, other: &PrivateKey) -> bool {
        self.public() == other.public()
    }
}

impl Eq for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PKCS1: &str = include_str!("../tests/data/github-app/pkcs1.pem");
    const PKCS8: &str = include_str!("../tests/data/github-app/pkcs8.pem");

    #[test]
    fn a_signature_is_the_one_that_openssl_makes() {
        let signature = STANDARD_PAD_INDIFFERENT
            .encode(PrivateKey::from_pem(PKCS1.as_bytes()).unwrap().sign("header.claims"));
        assert_eq!(signature, include_str!("../tests/data/github-app/signature.base64").trim());
    }

    #[test]
    fn the_same_key_is_read_in_either_form_and_as_windows_may_save_it() {
        let key = PrivateKey::from_pem(PKCS1.as_bytes()).unwrap();
        let utf16: Vec<u8> = format!("\u{feff}{PKCS1}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        let saved = [
            PKCS8.as_bytes().to_vec(),
            PKCS1.replace('\n', "\r\n").into_bytes(),
            format!("\u{feff}Key of the App\n\n{PKCS1}").into_bytes(),
            utf16,
        ];
        for file in saved {
            assert_eq!(PrivateKey::from_pem(&file), Ok(key.clone()));
        }
    }

    #[test]
    fn what_is_not_such_a_key_is_refused_with_the_reason_and_without_its_content() {
        let encrypted = PKCS1
            .replace("KEY-----\nMII", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMII");
        let damaged = PKCS1.replacen("MII", "MIJ", 1);
        let cases = [
            ("", "not a private key"),
            ("MIIEpAIBAAKCAQEA", "not a private key"),
            ("-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----", "not a private key"),
            ("-----BEGIN PUBLIC KEY-----\nMIIE\n-----END PUBLIC KEY-----", "not a private key"),
            (&PKCS1[..PKCS1.len() / 2], "not a private key"),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIE\n-----END ENCRYPTED PRIVATE KEY-----",
                "is encrypted",
            ),
            (&encrypted, "is encrypted"),
            ("-----BEGIN EC PRIVATE KEY-----\nMIIE\n-----END EC PRIVATE KEY-----", "no RSA key"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nMIIE\n-----END OPENSSH PRIVATE KEY-----", "no RSA key"),
            (include_str!("../tests/data/github-app/elliptic.pem"), "no RSA key"),
            (include_str!("../tests/data/github-app/1024-bits.pem"), "less than 2048 bits"),
            (&damaged, "is damaged"),
            ("-----BEGIN PRIVATE KEY-----\n?\n-----END PRIVATE KEY-----", "is damaged"),
        ];
        for (file, words) in cases {
            let why = PrivateKey::from_pem(file.as_bytes()).unwrap_err();
            assert!(why.contains(words) && !why.contains("MII"), "{words}: {why}");
        }
    }

    #[test]
    fn what_is_no_readable_file_is_refused() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        assert!(PrivateKey::read(&data).unwrap_err().starts_with("is not a key file"));
        assert!(PrivateKey::read(&data.join("none.pem")).unwrap_err().starts_with("cannot be read ("));
    }

    #[test]
    fn a_key_never_prints_itself() {
        assert_eq!(format!("{:?}", PrivateKey::from_pem(PKCS1.as_bytes())), "Ok(***)");
    }
}
