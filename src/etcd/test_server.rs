//! For tests in Rust: an etcd of the test's own, gone at its end. The binary is what `TORCHETCD_TEST_ETCD`
//! names.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Client, Config, TlsFiles, parse_endpoints};

pub fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("TORCHETCD_TEST_ETCD").map(PathBuf::from);
    if path.is_none() {
        #[allow(clippy::print_stderr, reason = "a test that does nothing must say so")]
        {
            eprintln!("skipped: TORCHETCD_TEST_ETCD does not name an etcd binary");
        }
    }
    path
}

pub struct Server {
    process: Child,
    pub endpoint: String,
    pub version: String,
    _data: tempfile::TempDir,
}

impl Server {
    pub async fn start(binary: &Path) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let [client, peer] = free_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let process = Command::new(binary)
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        let endpoint = client.trim_start_matches("http://").to_string();
        let mut server = Self { process, endpoint, version: String::new(), _data: data };
        let deadline = tokio::time::Instant::from(Instant::now() + Duration::from_secs(30));
        server.version = server.client().version(deadline).await.expect("etcd answers");
        server
    }

    pub fn client(&self) -> Client {
        Client::new(Config {
            endpoints: parse_endpoints(&self.endpoint, false).expect("an endpoint"),
            tls: TlsFiles::default(),
            credentials: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            as_it_is: false,
            cluster: None,
        })
    }
}

/// Two at once, so that they differ.
fn free_ports() -> [u16; 2] {
    let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    let (one, two) = (listen(), listen());
    [port(&one), port(&two)]
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
