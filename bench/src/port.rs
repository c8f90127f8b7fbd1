//! Loopback ports, looked at without being touched: some peers serve one connection only, so a
//! trial connection would use it up.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use crate::error::{At as _, Error};

/// A port that nobody listens on now.
pub(crate) fn free() -> Result<u16, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).at("bind", "127.0.0.1")?;
    Ok(listener.local_addr().at("name", "127.0.0.1")?.port())
}

/// Whether some process listens on `port`.
pub(crate) fn is_listening(port: u16) -> Result<bool, Error> {
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A machine without IPv6 has no second table.
        let sockets = fs::read_to_string(table).unwrap_or_default();
        if lists(&sockets, port) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lists(sockets: &str, port: u16) -> bool {
    /// The kernel's number for a listening socket.
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    sockets.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        state == Some(LISTEN) && local.is_some_and(|local| local.ends_with(&suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_seen_and_a_connected_one_is_not() {
        let header = "  sl  local_address rem_address   st\n";
        let listening = format!("{header}   0: 0100007F:1F90 00000000:0000 0A 00000000:0");
        assert!(lists(&listening, 8080));
        assert!(!lists(&listening, 8081));
        assert!(!lists(&listening.replace(" 0A ", " 01 "), 8080));
    }

    #[test]
    fn our_own_listener_is_seen() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(is_listening(listener.local_addr().unwrap().port()).unwrap());
    }
}
