//! Asks an agent's admin port, and reads what it answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::PATIENCE;

/// Gets a page: its status and its body.
#[must_use]
pub fn get(address: SocketAddr, page: &str) -> (u16, String) {
    let (head, body) = ask(address, &format!("GET {page}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body)
}

/// Sends a request line's method and page; the head and the body of the answer.
#[must_use]
pub fn ask(address: SocketAddr, what: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("{what} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// What is said to have another bandwidth limit.
#[must_use]
pub fn bandwidth_limit_request(limit: &str) -> String {
    let len = limit.len();
    format!(
        "PUT /bandwidth-limit HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\
         Content-Length: {len}\r\n\r\n{limit}"
    )
}

/// Sets an agent's bandwidth limit: the status and the body of the answer.
#[must_use]
pub fn put_bandwidth_limit(address: SocketAddr, limit: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = bandwidth_limit_request(limit);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

/// The value of a metric, with its labels as they are written; 0 for one that was never counted.
#[must_use]
pub fn metric(address: SocketAddr, name: &str) -> f64 {
    let (_, metrics) = get(address, "/metrics");
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// The progress now.
#[must_use]
pub fn progress(address: SocketAddr) -> Value {
    serde_json::from_str(&get(address, "/progress").1).unwrap()
}

/// The progress now, of an agent that may be gone.
#[must_use]
pub fn progress_if_there(address: SocketAddr) -> Option<Value> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = b"GET /progress HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";
    stream.write_all(request).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

/// Looks until a metric stands still. Should it only pause, the test proves less, but fails nobody.
pub fn wait_until_settled(address: SocketAddr, name: &str) {
    let settled = || {
        let before = metric(address, name);
        thread::sleep(Duration::from_millis(700));
        metric(address, name) == before
    };
    eventually(name, settled);
}

/// Looks until `is_so`; a page shows a change a moment after it happened.
///
/// # Panics
/// When it never is.
#[track_caller]
pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let give_up_at = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < give_up_at, "{what} did not come");
        thread::sleep(Duration::from_millis(20));
    }
}
