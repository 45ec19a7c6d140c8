//! Which server is meant, and how it is reached: one of this machine by its socket, any other by its
//! URL and token.

use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ankole_blockdev::unix_socket::short;
use ankole_whole_file as whole_file;

use super::Environment;
use crate::agent::layout::{
    api_socket_path, is_ours, registration_path, runtime_folder, token_path,
};
use crate::api::{ApiError, ErrorKind};
use crate::client::Client;

/// What a standalone takes to listen, with room.
const STARTING: Duration = Duration::from_secs(2);
const DEFAULT_ADDRESS: &str = "127.0.0.1:9500";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// The standalone of a data folder of this user, or of any for root.
    Local {
        data: PathBuf,
    },
    Remote {
        url: String,
        token: String,
    },
}

impl Server {
    pub(super) fn client(&self) -> Client {
        match self {
            Self::Local { data } => Client::local(api_socket_path(data)),
            Self::Remote { url, token } => Client::remote(url, token),
        }
    }

    /// Says nothing of who answers.
    fn knock(&self) -> io::Result<()> {
        match self {
            Self::Local { data } => {
                UnixStream::connect(short(&api_socket_path(data))?.as_path()).map(drop)
            }
            Self::Remote { url, .. } => {
                TcpStream::connect(url.trim_start_matches("http://")).map(drop)
            }
        }
    }

    fn unreachable(&self, error: &io::Error) -> Option<ApiError> {
        let Self::Local { data } = self else { return None }; // the client says it
        let shown = data.display();
        Some(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ApiError::failed(format!("no ankole runs on the data folder {shown}"))
                    .next(format!("start it: ankole standalone --data {shown}"))
            }
            io::ErrorKind::PermissionDenied => {
                ApiError::failed(format!("the ankole on the data folder {shown} is another user's"))
                    .next(
                        "become that user or root, or use --server with the token in ANKOLE_TOKEN",
                    )
            }
            _ => {
                ApiError::failed(format!("connect to {}: {error}", api_socket_path(data).display()))
            }
        })
    }
}

/// Finds the server, and waits a moment for one that was started in the line before.
pub(super) fn reach(
    server: Option<&str>,
    data: Option<&Path>,
    environment: &Environment,
) -> Result<Server, ApiError> {
    let deadline = Instant::now() + STARTING;
    loop {
        let is_late = Instant::now() >= deadline;
        match resolve(server, data, environment) {
            Ok(server) => match server.knock() {
                Err(_) if !is_late => {} // it may come
                Err(error) => return server.unreachable(&error).map_or(Ok(server), Err),
                Ok(()) => return Ok(server),
            },
            // The token, or the note under the address, may come.
            Err(error) if error.kind == ErrorKind::Failed && !is_late => {}
            Err(error) => return Err(error),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn resolve(
    server: Option<&str>,
    data: Option<&Path>,
    environment: &Environment,
) -> Result<Server, ApiError> {
    // A flag goes before the environment: a data folder given by a flag isn't overruled by
    // ANKOLE_SERVER, nor its token sent to a server that only a flag names.
    let (server, data) = match (server, data) {
        (None, None) => (environment.server.as_deref(), environment.data.as_deref()),
        flags => flags,
    };
    let token = environment.token.as_deref().map(str::trim);
    match (server, data, token) {
        (Some(server), _, Some(token)) => {
            Ok(Server::Remote { url: url_of(server)?, token: token.into() })
        }
        (Some(server), Some(data), None) => {
            Ok(Server::Remote { url: url_of(server)?, token: read_token(data)? })
        }
        (None, Some(data), _) => Ok(Server::Local { data: data.into() }),
        (_, None, token) => {
            let url = url_of(server.unwrap_or(DEFAULT_ADDRESS))?;
            match (registered_data(&url, environment), token) {
                (Some(data), _) => Ok(Server::Local { data }),
                (None, Some(token)) => Ok(Server::Remote { url, token: token.into() }),
                (None, None) => Err(ApiError::failed(format!(
                    "no ankole of this user is known at {url}"
                ))
                .next("start one with `ankole standalone --data DIR`, or name its folder with --data, or the token with ANKOLE_TOKEN")),
            }
        }
    }
}

fn url_of(server: &str) -> Result<String, ApiError> {
    if server.starts_with("https://") {
        return Err(ApiError::invalid(format!("{server}: TLS isn't built yet"))
            .next("use http:// to an address of this machine"));
    }
    let (scheme, address) = server.split_once("://").unwrap_or(("http", server));
    let address = address.trim_end_matches('/');
    if scheme != "http" || address.is_empty() || address.contains('/') {
        return Err(ApiError::invalid(format!("{server} isn't a server's URL"))
            .next(format!("write it as http://{DEFAULT_ADDRESS}")));
    }
    Ok(format!("http://{address}"))
}

fn read_token(data: &Path) -> Result<String, ApiError> {
    let path = token_path(data);
    let read = whole_file::read_line(&path);
    let read = read.and_then(|token| token.ok_or_else(|| io::ErrorKind::NotFound.into()));
    read.map(|token| token.trim().into()).map_err(|error| {
        ApiError::failed(format!("read the token {}: {error}", path.display()))
            .next("name the folder of the running standalone with --data, or set ANKOLE_TOKEN")
    })
}

/// By the note that a standalone leaves under its address in this user's runtime folder.
fn registered_data(url: &str, environment: &Environment) -> Option<PathBuf> {
    let folder = runtime_folder(environment.runtime_dir.as_deref());
    if !is_ours(&folder).ok()? {
        return None;
    }
    let address = url.trim_start_matches("http://").replace("localhost", "127.0.0.1");
    // One that was cut short leads to no folder, and the next start writes it anew.
    let data = whole_file::read_line(&registration_path(&folder, &address)).ok()??;
    Some(data.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(token: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(token_path(folder.path()), format!("{token}\n")).unwrap();
        folder
    }

    #[test]
    fn a_flag_goes_before_the_environment() {
        let (by_flag, by_environment) = (folder("one"), folder("two"));
        let environment = Environment {
            server: Some("http://127.0.0.1:3".into()),
            data: Some(by_environment.path().into()),
            ..Environment::default()
        };
        let flagged = resolve(None, Some(by_flag.path()), &environment).unwrap();
        assert_eq!(flagged, Server::Local { data: by_flag.path().into() });
        let unflagged = resolve(None, None, &environment).unwrap();
        let url = "http://127.0.0.1:3".into();
        assert_eq!(unflagged, Server::Remote { url, token: "two".into() });
    }

    /// Otherwise any address in a mistyped --server would get the token.
    #[test]
    fn a_server_of_a_flag_does_not_get_the_token_of_another_folder() {
        let other = folder("two");
        let environment = Environment {
            data: Some(other.path().into()),
            runtime_dir: Some("/nowhere".into()),
            ..Environment::default()
        };
        assert!(resolve(Some("http://127.0.0.1:9"), None, &environment).is_err());
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for server in ["", "ftp://x", "http://", "https://x", "http://x/path"] {
            assert!(url_of(server).is_err(), "{server}");
        }
        assert_eq!(url_of("127.0.0.1:1/").unwrap(), "http://127.0.0.1:1");
    }
}
