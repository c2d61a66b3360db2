//! The status page: one text without anything from elsewhere. It reads `/api/status`.

use super::server::Reply;

const PAGE: &str = include_str!("page.html");

/// Nothing but the page's own script and style, by their SHA-256, and requests to the pool itself.
///
/// <https://www.w3.org/TR/CSP3/#grammardef-hash-source>
const POLICY: &str = "default-src 'none'; script-src 'sha256-guLdSHKGaf+TZLmx7fLEv6GKq2AENmSNIyD9ca2VbYI='; \
    style-src 'sha256-TY4a3fjB0zsFxxUx/SLEJBOtRaG5xmsqlajmhV5Nttw='; connect-src 'self'; img-src 'self' data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn page() -> Reply {
    Reply::new(200, "text/html; charset=utf-8", PAGE)
        .with_header("Content-Security-Policy", POLICY)
        .with_header("X-Content-Type-Options", "nosniff")
        .with_header("Referrer-Policy", "no-referrer")
        .with_header("Cache-Control", "no-store")
}

#[cfg(test)]
mod tests {
    use super::{PAGE, POLICY};
    use sha2::{Digest, Sha256};

    /// RFC 4648, section 4.
    fn base64(bytes: &[u8]) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let group = |chunk: &[u8]| {
            let number = chunk.iter().chain(&[0; 3]).take(3).fold(0, |n, byte| n << 8 | usize::from(*byte));
            let letter = |at: usize| match at <= chunk.len() {
                true => char::from(LETTERS[number >> (18 - 6 * at) & 63]),
                false => '=',
            };
            (0..4).map(letter).collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    }

    #[test]
    fn the_policy_allows_the_pages_own_script_and_style() {
        for tag in ["script", "style"] {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            assert_eq!(PAGE.matches(&open).count(), 1, "one {tag}");
            let (_, rest) = PAGE.split_once(&open).unwrap();
            let (text, _) = rest.split_once(&close).unwrap();
            let source = format!("{tag}-src 'sha256-{}'", base64(&Sha256::digest(text)));
            assert!(POLICY.contains(&source), "the policy of the page must have: {source}");
        }
    }
}
