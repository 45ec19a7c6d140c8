//! HTTP over a unix socket of this machine, for [`ureq`].
//!
//! The socket lies in a folder that only its owner can enter, so whoever answers there is the server:
//! no token goes over it, and none is needed.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ankole_blockdev::unix_socket::short;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

/// The host of its URLs, for the header that HTTP/1.1 asks for.
pub(super) const URL: &str = "http://ankole";

#[derive(Debug)]
pub(super) struct Socket(pub(super) PathBuf);

impl Connector for Socket {
    type Out = Connection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<Connection>, Error> {
        let stream = UnixStream::connect(short(&self.0)?.as_path())?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Connection { stream, buffers }))
    }
}

/// There is one place to go, whatever the URL says.
#[derive(Debug)]
pub(super) struct Nowhere;

impl Resolver for Nowhere {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(([127, 0, 0, 1], 0).into());
        Ok(addresses)
    }
}

pub(super) struct Connection {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stream.fmt(f)
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_write_timeout(patience(timeout))?;
        let output = &self.buffers.output()[..amount];
        match self.stream.write_all(output) {
            // The server has answered without reading all, and closed: what it said is there.
            Err(error) if is_closed(&error) => Ok(()),
            done => done.map_err(|error| late(error, timeout.reason)),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(patience(timeout))?;
        let input = self.buffers.input_append_buf();
        let count = loop {
            match self.stream.read(input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => break done.map_err(|error| late(error, timeout.reason))?,
            }
        };
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    /// Nothing is to be read between two answers, not even its end.
    fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let looked = self
            .stream
            .set_nonblocking(true)
            .and_then(|()| self.stream.read(&mut byte))
            .map_err(|error| error.kind());
        looked == Err(io::ErrorKind::WouldBlock) && self.stream.set_nonblocking(false).is_ok()
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn patience(timeout: NextTimeout) -> Option<std::time::Duration> {
    match timeout.after {
        Duration::NotHappening => None,
        // Zero would mean for ever.
        Duration::Exact(after) => Some(after.max(std::time::Duration::from_millis(1))),
    }
}

fn late(error: io::Error, reason: Timeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(reason),
        _ => Error::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::Client;
    use ankole_api::{ErrorKind, Name};

    use super::*;

    /// A refusal needs no body, and the server closes when it has said it: that was told as a server
    /// that isn't there.
    #[test]
    fn what_a_server_says_before_it_has_heard_all_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                connection.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let body = r#"{"kind":"conflict","message":"no"}"#;
            let length = body.len();
            write!(connection, "HTTP/1.1 409 Conflict\r\ncontent-length: {length}\r\n\r\n{body}")
                .unwrap();
        });
        let name: Name = "vol".parse().unwrap();
        let url = "x".repeat(4 << 20); // more than a socket takes unread
        let told = Client::local(path).add_target(&name, &url).expect_err("it is refused");
        assert_eq!((told.kind, told.message.as_str()), (ErrorKind::Conflict, "no"));
        server.join().unwrap();
    }
}
