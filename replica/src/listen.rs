//! Where replicas and engines meet: unix sockets, or TCP on the loopback until there is TLS.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ankole_blockdev::unix_socket;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// `unix:PATH`, `tcp:127.0.0.1:PORT`, or `dir:PATH` for a replica inside the engine's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
    Directory(PathBuf),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} is no address; write unix:PATH, tcp:127.0.0.1:PORT or dir:PATH")]
    Malformed(String),
    #[error(
        "{0} isn't on the loopback; until connections are encrypted, replicas listen on unix \
         sockets and loopback addresses only"
    )]
    NotLoopback(SocketAddr),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            Some(("tcp", address)) => {
                let address: SocketAddr = address.parse().map_err(|_| malformed())?;
                if address.ip().is_loopback() {
                    Ok(Self::Tcp(address))
                } else {
                    Err(AddressError::NotLoopback(address))
                }
            }
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Connects to a served replica.
pub async fn connect(address: &Address) -> io::Result<(Reader, Writer)> {
    match address {
        Address::Unix(path) => {
            let (reader, writer) = unix_socket::connect(path).await?.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        Address::Tcp(address) => split(TcpStream::connect(address).await?),
        Address::Directory(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn split(stream: TcpStream) -> io::Result<(Reader, Writer)> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    Ok((Box::new(reader), Box::new(writer)))
}

pub enum Listener {
    Unix(unix_socket::Listener),
    Tcp(TcpListener),
}

impl Listener {
    /// A socket file that nobody answers on any more is replaced; a live one is an error.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        let named = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another process listens there: stop it or choose another"
                }
                io::ErrorKind::NotFound => "; create the folder first",
                _ => "",
            };
            io::Error::new(error.kind(), format!("listen on {address}: {error}{hint}"))
        };
        match address {
            Address::Unix(path) => {
                if unix_socket::connect(path).await.is_ok() {
                    return Err(named(io::ErrorKind::AddrInUse.into()));
                }
                Ok(Self::Unix(unix_socket::Listener::bind(path).map_err(named)?))
            }
            Address::Tcp(socket) => Ok(Self::Tcp(TcpListener::bind(socket).await.map_err(named)?)),
            Address::Directory(_) => {
                Err(named(io::Error::new(io::ErrorKind::InvalidInput, "it is a directory")))
            }
        }
    }

    /// The streams, and the process at the other end if the kernel names it.
    pub async fn accept(&self) -> io::Result<(Reader, Writer, Option<u32>)> {
        match self {
            Self::Unix(listener) => {
                let stream = listener.accept().await?;
                let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
                let process = process.and_then(|process| u32::try_from(process).ok());
                let (reader, writer) = stream.into_split();
                Ok((Box::new(reader), Box::new(writer), process))
            }
            Self::Tcp(listener) => {
                let (reader, writer) = split(listener.accept().await?.0)?;
                Ok((reader, writer, None))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_served_while_nothing_is_encrypted() {
        assert!("tcp:127.0.0.1:0".parse::<Address>().is_ok());
        assert!("tcp:[::1]:9600".parse::<Address>().is_ok());
        assert!(matches!(
            "tcp:10.0.0.1:9600".parse::<Address>(),
            Err(AddressError::NotLoopback(_))
        ));
        assert!(matches!("tcp:0.0.0.0:9600".parse::<Address>(), Err(AddressError::NotLoopback(_))));
        assert!(matches!("nonsense".parse::<Address>(), Err(AddressError::Malformed(_))));
    }
}
