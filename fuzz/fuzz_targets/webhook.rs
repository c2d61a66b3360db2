//! `POST /webhook` with any body, event and signature: an answer of the ones
//! that there are, and 200 or 400 only for the right signature.
#![no_main]

#[path = "../server.rs"]
mod server;

use libfuzzer_sys::fuzz_target;
use server::{SERVER, exchange};

fuzz_target!(|input: (bool, u64, &[u8], &[u8], &[u8])| {
    let (right, delivery, event, signature, body) = input;
    let value =
        |bytes: &[u8]| -> Vec<u8> { bytes.iter().filter(|b| **b >= b' ' && **b != 127).copied().collect() };
    let right_one = SERVER.keys.sign_webhook(body).into_bytes();
    let signature = if right { right_one.clone() } else { value(signature) };
    let is_right = signature.trim_ascii() == right_one;
    let mut request = b"POST /webhook HTTP/1.1\r\nHost: h\r\nX-Hub-Signature-256: ".to_vec();
    request.extend_from_slice(&signature);
    if !event.is_empty() {
        request.extend_from_slice(b"\r\nX-GitHub-Event: ");
        request.extend_from_slice(&value(event));
    }
    request
        .extend_from_slice(format!("\r\nX-GitHub-Delivery: {delivery}\r\nConnection: close\r\n").as_bytes());
    request.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    if request.len() > 16 * 1024 {
        return;
    }
    request.extend_from_slice(body);
    let answer = exchange(&request);
    match answer.first().copied() {
        Some(200 | 400) => assert!(is_right, "taken without the right signature"),
        Some(401) => assert!(!is_right, "the right signature is refused"),
        other => panic!("{other:?}"),
    }
    assert_eq!(answer.len(), 1);
});
