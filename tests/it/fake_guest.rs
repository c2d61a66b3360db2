//! The fake guest of these tests sends the requests of `tests/data/guest-requests.json`.
//! `tests/powershell` holds the script in the image, `packer/guest/pool.ps1`, against the same file.

use crate::support::fake_guest::{Answer, FakeGuest, Image};
use crate::support::free_port;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

fn expected() -> Value {
    serde_json::from_str(include_str!("../data/guest-requests.json")).unwrap()
}

fn guest(url: &str) -> FakeGuest {
    let expected = &expected()["guest"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let image = Image {
        runner_version: text(&expected["image"]["runner_version"]),
        built: text(&expected["image"]["built"]),
        windows_evaluation_end: Some(text(&expected["image"]["windows_evaluation_end"])),
    };
    FakeGuest { image, ..FakeGuest::new(url, &text(&expected["vm_name"]), &text(&expected["secret"])) }
}

/// Reads one request, as far as the pool can tell one from another.
fn read_request(stream: &TcpStream) -> Value {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut first = line.split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let mut body = vec![0; header("content-length").parse().unwrap_or_default()];
    reader.read_exact(&mut body).unwrap();
    json!({
        "method": method,
        "path": path,
        "authorization": header("authorization"),
        "user_agent": header("user-agent"),
        "content_type": header("content-type"),
        "body": serde_json::from_slice::<Value>(&body).ok(),
    })
}

/// What the fake guest sends, and what it makes of the answer.
fn sent(status: u16, body: &str, send: impl FnOnce(&FakeGuest) -> Answer + Send) -> (Value, Answer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::scope(|scope| {
        let answer = scope.spawn(|| send(&guest(&url)));
        let (mut stream, _) = listener.accept().unwrap();
        let request = read_request(&stream);
        write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        (request, answer.join().unwrap())
    })
}

#[test]
fn the_fake_guest_sends_what_the_script_in_the_image_sends() {
    let requests = expected()["requests"].clone();
    let (request, answer) = sent(200, "{\"token\":\"t\"}", FakeGuest::fetch_config);
    assert_eq!(request, requests["fetch_config"]);
    assert_eq!(answer, Answer { status: 200, body: "{\"token\":\"t\"}".into() });
    assert_eq!(sent(200, "OK", FakeGuest::report_started).0, requests["report_started"]);
    assert_eq!(sent(200, "OK", FakeGuest::report_complete).0, requests["report_complete"]);
    let (request, _) = sent(200, "OK", |guest| {
        let image = Image { windows_evaluation_end: None, ..guest.image.clone() };
        FakeGuest { image, ..guest.clone() }.fetch_config()
    });
    assert_eq!(request["user_agent"], expected()["user_agent_without_evaluation_end"]);
}

#[test]
fn to_the_fake_guest_a_refusal_is_its_status_and_silence_is_0() {
    for status in [401, 404, 409, 503] {
        let answer = sent(status, "why", FakeGuest::fetch_config).1;
        assert_eq!(answer, Answer { status, body: String::new() });
    }
    assert_eq!(guest(&format!("http://127.0.0.1:{}", free_port())).report_complete().status, 0);
}
