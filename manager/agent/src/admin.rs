//! Asking an engine over its admin socket, and hearing what it tells: lines of JSON.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ankole_api::ApiError;
use ankole_api::error::chain;
use ankole_blockdev::unix_socket::short;
use ankole_replica::admin::{Answer, ErrorKind, Request};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

/// A chain of 4096 snapshots with labels fits.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("the engine doesn't answer")]
    NoAnswer(#[source] io::Error),
    #[error("{message}")]
    Refused { kind: ErrorKind, message: String },
    #[error("the engine's answer isn't understood")]
    Garbage(#[source] serde_json::Error),
}

impl AdminError {
    /// Nobody listens there: the socket was removed, or the process hasn't made it yet.
    pub fn is_nobody(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::NoAnswer(error) if [ConnectionRefused, NotFound].contains(&error.kind()))
    }
}

impl From<AdminError> for ApiError {
    fn from(error: AdminError) -> Self {
        let message = chain(&error);
        match error {
            AdminError::Refused { kind: ErrorKind::NotFound, .. } => Self::not_found(message),
            AdminError::Refused { kind: ErrorKind::Conflict, .. } => Self::conflict(message),
            AdminError::Refused { kind: ErrorKind::Invalid, .. } => Self::invalid(message),
            AdminError::Refused { kind: ErrorKind::Failed, .. }
            | AdminError::NoAnswer(_)
            | AdminError::Garbage(_) => Self::failed(message),
        }
    }
}

/// Any answer but an error. `timeout` bounds each wait for the engine.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> Result<Answer, AdminError> {
    let line = exchange(socket, request, timeout).map_err(AdminError::NoAnswer)?;
    match serde_json::from_slice(&line).map_err(AdminError::Garbage)? {
        Answer::Error { kind, message } => Err(AdminError::Refused { kind, message }),
        answer => Ok(answer),
    }
}

/// The same, without a thread that waits.
pub async fn ask_async(
    socket: &Path,
    request: &Request,
    timeout: Duration,
) -> Result<Answer, AdminError> {
    let asking = async { Conversation::open(socket, request).await?.next().await };
    let late = |_| AdminError::NoAnswer(io::ErrorKind::TimedOut.into());
    match tokio::time::timeout(timeout, asking).await.map_err(late)?? {
        Answer::Error { kind, message } => Err(AdminError::Refused { kind, message }),
        answer => Ok(answer),
    }
}

/// One request, and all answers to it.
pub struct Conversation {
    stream: tokio::io::BufReader<tokio::net::UnixStream>,
    line: Vec<u8>,
}

impl Conversation {
    pub async fn open(socket: &Path, request: &Request) -> Result<Self, AdminError> {
        Self::begin(socket, request).await.map_err(AdminError::NoAnswer)
    }

    async fn begin(socket: &Path, request: &Request) -> io::Result<Self> {
        let stream = connect(socket)?;
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        Ok(Self { stream: tokio::io::BufReader::new(stream), line: Vec::new() })
    }

    /// One that is dropped halfway goes on where it was.
    pub async fn next(&mut self) -> Result<Answer, AdminError> {
        let left_bytes = ANSWER_BYTES_MAX.saturating_sub(self.line.len() as u64);
        let mut limited = (&mut self.stream).take(left_bytes);
        limited.read_until(b'\n', &mut self.line).await.map_err(AdminError::NoAnswer)?;
        let line = std::mem::take(&mut self.line);
        if line.last() != Some(&b'\n') {
            let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
            return Err(AdminError::NoAnswer(closed));
        }
        serde_json::from_slice(&line).map_err(AdminError::Garbage)
    }
}

fn exchange(socket: &Path, request: &Request, timeout: Duration) -> io::Result<Vec<u8>> {
    let mut connection = connect(socket)?;
    connection.set_read_timeout(Some(timeout))?;
    connection.set_write_timeout(Some(timeout))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    connection.write_all(&text)?;
    let mut line = Vec::new();
    BufReader::new(connection.take(ANSWER_BYTES_MAX)).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    Ok(line)
}

/// Never waits: connecting to a process that is stopped, and whose queue is full, would wait for
/// ever.
fn connect(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let path = short(path)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_path())?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);

    /// An engine that is stopped (SIGSTOP, a debugger) accepts nothing. Its queue fills with our
    /// questions, and then a connect that waits would stop whoever looks after the volume with it.
    #[test]
    fn an_engine_that_never_accepts_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin");
        let _stopped = UnixListener::bind(&path).unwrap();
        let mut full = Vec::new();
        while let Ok(connection) = connect(&path) {
            full.push(connection);
            assert!(full.len() < 100_000, "the queue has an end");
        }
        let begun = Instant::now();
        let answer = ask(&path, &Request::Status, TIMEOUT);
        assert!(matches!(answer, Err(AdminError::NoAnswer(_))));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn garbage_from_the_engine_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin");
        let listener = UnixListener::bind(&path).unwrap();
        let engine = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            // An answer before the question is a broken pipe to whoever still asks.
            let mut asked = [0];
            while connection.read(&mut asked).unwrap() > 0 && asked != *b"\n" {}
            connection.write_all(b"moo\n").unwrap();
        });
        let answer = ask(&path, &Request::Status, Duration::from_secs(10));
        assert!(matches!(answer, Err(AdminError::Garbage(_))));
        engine.join().unwrap();
    }
}
