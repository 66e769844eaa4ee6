//! Metrics for those who do not look into the mount: over HTTP, and as a file for node_exporter.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tiny_http::{Header, Method, Response, Server};

/// What Prometheus expects of its text format.
const CONTENT_TYPE: &[u8] = b"text/plain; version=0.0.4; charset=utf-8";

/// Answers GET /metrics until it is dropped.
pub struct Listener {
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
    address: Option<SocketAddr>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Listener {
    /// Listens at `address`; `text` makes what is shown, on a thread of its own.
    ///
    /// # Errors
    /// When the address cannot be had, or no thread.
    pub fn start(
        address: SocketAddr, text: impl Fn() -> String + Send + 'static,
    ) -> io::Result<Listener> {
        let server =
            Server::http(address).map_err(|error| match error.downcast::<io::Error>() {
                Ok(error) => *error,
                Err(other) => io::Error::other(other.to_string()),
            })?;
        let server = Arc::new(server);
        let (listening, address) = (server.clone(), server.server_addr().to_ip());
        let thread = std::thread::Builder::new().name("swapfs-metrics".to_owned());
        let thread = thread.spawn(move || {
            for request in listening.incoming_requests() {
                answer(request, &text);
            }
        })?;
        Ok(Listener { server, thread: Some(thread), address })
    }

    /// Where it listens, with the port that was chosen where none was asked for.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

fn answer(request: tiny_http::Request, text: &impl Fn() -> String) {
    let path = request.url().split('?').next().unwrap_or_default();
    let reads = matches!(request.method(), Method::Get | Method::Head);
    let (status, body) = match (reads, path) {
        (true, "/metrics") => (200, text()),
        (true, "/") => (200, "swapfs: see /metrics\n".to_owned()),
        (true, _) => (404, "not found: only /metrics is here\n".to_owned()),
        (false, _) => (405, "only GET and HEAD are answered\n".to_owned()),
    };
    let header = Header::from_bytes(&b"Content-Type"[..], CONTENT_TYPE);
    let mut response = Response::from_string(body).with_status_code(status);
    if let Ok(header) = header {
        response.add_header(header);
    }
    // Fails when whoever asked has gone.
    let _ = request.respond(response);
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes `text` to `path` so that a reader sees the old or the new one whole; readable by everyone, as
/// node_exporter runs as a user of its own.
///
/// # Errors
/// When the folder is not there or may not be written.
pub fn write_textfile(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Does not end in .prom: node_exporter leaves it alone.
    name.push(format!(".{}", std::process::id()));
    let fresh = path.with_file_name(name);
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&fresh)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&fresh, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn only_metrics_are_shown_and_only_to_readers() {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::start(local, || "swapfs_up 1\n".to_owned()).unwrap();
        let address = listener.address().unwrap();
        let shown = ask(address, "GET /metrics");
        assert!(shown.starts_with("HTTP/1.1 200"), "{shown}");
        assert!(shown.contains("text/plain; version=0.0.4"), "{shown}");
        assert!(shown.ends_with("\r\n\r\nswapfs_up 1\n"), "{shown}");
        assert!(ask(address, "HEAD /metrics").starts_with("HTTP/1.1 200"));
        assert!(ask(address, "GET /other").starts_with("HTTP/1.1 404"));
        assert!(ask(address, "DELETE /metrics").starts_with("HTTP/1.1 405"));
        let error = Listener::start(address, String::new).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        drop(listener);
        // Its socket is closed by a thread of its own.
        let ended = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            TcpStream::connect(address).is_err()
        });
        assert!(ended, "it goes on listening");
    }

    #[test]
    fn a_textfile_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swapfs.prom");
        for text in ["a 1\n", "a 2\n"] {
            write_textfile(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        assert!(write_textfile(&folder.path().join("no/swapfs.prom"), "").is_err());
    }
}
