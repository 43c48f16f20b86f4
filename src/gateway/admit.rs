//! Whose process a connection comes from: the store's values are pickled objects, and nobody else may write them.

use std::net::SocketAddr;

/// The kernel's tables of connections, by the family of their addresses.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// The kernel writes a table in parts, and may leave a line out where others come and go meanwhile.
const LOOKS: usize = 5;

/// The user whose socket is connected from `client` to `server`, both on this host.
pub fn user_of(client: SocketAddr, server: SocketAddr) -> std::io::Result<Option<u32>> {
    for _ in 1..LOOKS {
        if let Some(user) = look(client, server)? {
            return Ok(Some(user));
        }
    }
    look(client, server)
}

fn look(client: SocketAddr, server: SocketAddr) -> std::io::Result<Option<u32>> {
    let mut unread = None;
    for table in TABLES {
        match std::fs::read_to_string(table) {
            Ok(text) => {
                if let Some(user) = find(&text, client, server) {
                    return Ok(Some(user));
                }
            }
            Err(error) => unread = Some(error),
        }
    }
    // A host without IPv6 has no table of it.
    match unread {
        Some(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(None),
    }
}

fn find(table: &str, client: SocketAddr, server: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (local, remote) = (columns.next()?, columns.next()?);
        let here = address(local)? == plain(client) && address(remote)? == plain(server);
        // After these: state, queues, timer, retransmissions.
        here.then(|| columns.nth(4)?.parse().ok()).flatten()
    })
}

/// A client may use an IPv6 socket for an IPv4 address.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Words of the address are in the byte order of the host, the port is a number.
fn address(column: &str) -> Option<SocketAddr> {
    let (words, port) = column.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..words.len()).step_by(8) {
        let word = u32::from_str_radix(words.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => four.into(),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).ok()?.into(),
    };
    Some(plain(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "it connects")]
    fn the_user_of_a_connection_is_found() {
        let own = std::fs::metadata("/proc/self").expect("a process").uid();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = listener.local_addr().expect("an address");
        let client = TcpStream::connect(server).expect("connected");
        let from = client.local_addr().expect("an address");
        assert_eq!(user_of(from, server).expect("readable"), Some(own));
        let elsewhere = SocketAddr::new(server.ip(), 1);
        assert_eq!(user_of(from, elsewhere).expect("readable"), None);
    }

    #[test]
    fn lines_of_both_families_are_read() {
        let header =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";
        let four = "   0: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000 0 1 1\n";
        let six = "   1: 0000000000000000FFFF00000100007F:C351 0000000000000000FFFF00000100007F:1F90 01 \
                   00000000:00000000 00:00000000 00000000  1001 0 1 1\n";
        let of = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for (table, port, user) in [(four, 50000, 1000), (six, 50001, 1001)] {
            let table = format!("{header}{table}");
            assert_eq!(find(&table, of(port), of(8080)), Some(user));
            assert_eq!(find(&table, of(port), of(8081)), None);
        }
        assert_eq!(
            find("a\nb c\n0: 1 2\n0: 0100007F:C350 0100007F:1F90", of(50000), of(8080)),
            None
        );
    }
}
