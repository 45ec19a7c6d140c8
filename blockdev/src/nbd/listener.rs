//! Where a server waits for clients.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;

use super::stream::Stream;
use crate::unix_socket;

/// Which TCP addresses may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpExposure {
    /// Only addresses that no other machine reaches: the protocol here has neither TLS nor a
    /// password.
    LoopbackOnly,
    /// Any address. Whoever reaches it can read and write the disk.
    UnprotectedAnywhere,
}

/// Why a server can't listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another server answers on {path}; stop it, or choose another path")]
    PathInUse { path: PathBuf },
    #[error("{path} exists and isn't a socket; remove it, or choose another path")]
    NotASocket { path: PathBuf },
    #[error("listen on the unix socket {path}")]
    BindUnix { path: PathBuf, source: io::Error },
    #[error("{address} is in use; choose another port (0 takes a free one)")]
    AddressInUse { address: SocketAddr },
    #[error(
        "{address} can be reached from other machines, and NBD here has no TLS; \
         use a loopback address or a unix socket"
    )]
    NotLoopback { address: SocketAddr },
    #[error("listen on {address}")]
    BindTcp { address: SocketAddr, source: io::Error },
}

/// A bound socket. A unix socket's file is removed when this is dropped.
pub struct Listener(Socket);

enum Socket {
    Unix(unix_socket::Listener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on a unix socket that only the same user may connect to.
    ///
    /// A file left by a dead server is replaced. Two servers that start at the same instant on
    /// one path are not kept apart here: only one engine per volume is ever started.
    pub async fn bind_unix(path: impl Into<PathBuf>) -> Result<Self, ListenError> {
        let path = path.into();
        let failed = |path: &Path, source| ListenError::BindUnix { path: path.into(), source };
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&path, error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ListenError::NotASocket { path });
            }
            Ok(_) => match unix_socket::connect(&path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                // Also a full queue (EAGAIN): somebody lives there.
                _ => return Err(ListenError::PathInUse { path }),
            },
        }
        let listener = unix_socket::Listener::bind(&path).map_err(|error| failed(&path, error))?;
        Ok(Self(Socket::Unix(listener)))
    }

    pub async fn bind_tcp(address: SocketAddr, exposure: TcpExposure) -> Result<Self, ListenError> {
        if exposure == TcpExposure::LoopbackOnly && !address.ip().is_loopback() {
            return Err(ListenError::NotLoopback { address });
        }
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self(Socket::Tcp(listener))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(ListenError::AddressInUse { address })
            }
            Err(source) => Err(ListenError::BindTcp { address, source }),
        }
    }

    /// What a client connects to, in the form that libnbd and QEMU understand.
    pub fn uri(&self) -> String {
        match &self.0 {
            Socket::Unix(listener) => {
                format!("nbd+unix:///?socket={}", percent_encoded(listener.path()))
            }
            Socket::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("nbd://{address}"),
                Err(_) => "nbd://".into(),
            },
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.0 {
            Socket::Unix(listener) => Ok(Stream::Unix(listener.accept().await?)),
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Replies are gathered here already; waiting for more would only add latency.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(listener) = &self.0 {
            // If it stays, the next server finds that nobody answers and replaces it.
            listener.remove_name();
        }
    }
}

/// RFC 3986: everything that isn't surely harmless in a query becomes `%XX`.
fn percent_encoded(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
            }
            _ => write!(text, "%{byte:02X}").expect("a String takes everything"),
        }
    }
    text
}
