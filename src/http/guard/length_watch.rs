//! The one thing of HTTP that the guard reads: how long a body claims to be.

/// Watches for a body that claims to be 100 MB or longer. When a request is
/// given up, `tiny_http` sets aside as many bytes as its body lacks: one header
/// field could end the program (`EqualReader::drop`, tiny_http 0.12). So no such
/// field passes; real limits are the handler's.
pub(super) enum LengthWatch {
    /// So much of a line is the field's name.
    Name(usize),
    /// It is, and so many digits of its value have come.
    Digits(usize),
    Elsewhere,
}

impl LengthWatch {
    const NAME: &[u8] = b"content-length:";
    const MOST_DIGITS: usize = 8;

    /// Whether these bytes may pass, after those that have.
    pub(super) fn allows(&mut self, bytes: &[u8]) -> bool {
        let is_space = |byte: u8| byte.is_ascii_whitespace() || byte == b'\x0b';
        for &byte in bytes {
            *self = match *self {
                _ if byte == b'\n' => LengthWatch::Name(0),
                LengthWatch::Elsewhere => continue,
                LengthWatch::Name(0) if is_space(byte) => continue,
                LengthWatch::Name(at) if byte.eq_ignore_ascii_case(&LengthWatch::NAME[at]) => {
                    match at + 1 == LengthWatch::NAME.len() {
                        true => LengthWatch::Digits(0),
                        false => LengthWatch::Name(at + 1),
                    }
                }
                LengthWatch::Digits(0) if is_space(byte) || b"+0".contains(&byte) => continue,
                LengthWatch::Digits(LengthWatch::MOST_DIGITS) if byte.is_ascii_digit() => return false,
                LengthWatch::Digits(digits) if byte.is_ascii_digit() => LengthWatch::Digits(digits + 1),
                _ => LengthWatch::Elsewhere,
            };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(text: &str, piece: usize) -> bool {
        let mut watch = LengthWatch::Name(0);
        text.as_bytes().chunks(piece).all(|bytes| watch.allows(bytes))
    }

    #[test]
    fn a_length_of_100_mb_does_not_pass_however_it_is_written_and_cut() {
        for field in [
            "Content-Length: 100000000",
            "content-LENGTH:99999999999999999999999",
            "Content-Length:\t +00000000000000123456789",
            "  Content-Length: 123456789",
            "\x0bContent-Length:\x0b\x0c123456789",
        ] {
            for piece in [1, 2, 3, 7, 1000] {
                assert!(!passes(&format!("POST / HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"), piece), "{field}");
            }
        }
    }

    #[test]
    fn everything_else_passes() {
        for text in [
            "POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0000000000000012\r\nX-Job: 123456789012\r\n\r\n",
            "POST / HTTP/1.1\r\nX-Content-Length: 123456789012\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\n{\"title\":\"Content-Length: 123456789012\"}",
        ] {
            assert!(passes(text, 5), "{text}");
        }
    }
}
