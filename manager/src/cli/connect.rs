//! Which server is meant, and its token.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::Environment;
use crate::agent::layout::{
    api_address_path, is_ours, registration_path, runtime_folder, token_path,
};
use crate::api::{ApiError, ErrorKind};

/// What a standalone takes to listen, with room.
const STARTING: Duration = Duration::from_secs(2);
const DEFAULT_ADDRESS: &str = "127.0.0.1:9500";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) url: String,
    pub(super) token: String,
}

impl Server {
    fn answers(&self) -> bool {
        TcpStream::connect(self.url.trim_start_matches("http://")).is_ok()
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
        let resolved = resolve(server, data, environment);
        let may_come = match &resolved {
            Ok(server) => !server.answers(),
            Err(error) => error.kind == ErrorKind::Failed,
        };
        if !may_come || Instant::now() >= deadline {
            return resolved;
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
    let url = match (server, data) {
        (Some(server), _) => url_of(server)?,
        (None, Some(data)) => format!("http://{}", address_of(data)?),
        (None, None) => format!("http://{DEFAULT_ADDRESS}"),
    };
    let token = match (&environment.token, data) {
        (Some(token), _) => token.trim().into(),
        (None, Some(data)) => read_token(data)?,
        (None, None) => registered_token(&url, environment).ok_or_else(|| {
            ApiError::failed(format!("no ankole of this user is known at {url}"))
                .next("start one with `ankole standalone --data DIR`, or name its folder with --data, or the token with ANKOLE_TOKEN")
        })?,
    };
    Ok(Server { url, token })
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

fn address_of(data: &Path) -> Result<String, ApiError> {
    let path = api_address_path(data);
    fs::read_to_string(&path).map(|address| address.trim().into()).map_err(|error| {
        let data = data.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                ApiError::failed(format!("no ankole runs on the data folder {data}"))
                    .next(format!("start it: ankole standalone --data {data}"))
            }
            _ => ApiError::failed(format!("read {}: {error}", path.display())),
        }
    })
}

fn read_token(data: &Path) -> Result<String, ApiError> {
    let path = token_path(data);
    fs::read_to_string(&path).map(|token| token.trim().into()).map_err(|error| {
        ApiError::failed(format!("read the token {}: {error}", path.display()))
            .next("name the folder of the running standalone with --data, or set ANKOLE_TOKEN")
    })
}

/// By the note that a standalone leaves under its address in this user's runtime folder.
fn registered_token(url: &str, environment: &Environment) -> Option<String> {
    let folder = runtime_folder(environment.runtime_dir.as_deref());
    if !is_ours(&folder).ok()? {
        return None;
    }
    let address = url.trim_start_matches("http://").replace("localhost", "127.0.0.1");
    let data = fs::read_to_string(registration_path(&folder, &address)).ok()?;
    read_token(Path::new(data.trim_end())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(address: &str, token: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        fs::write(api_address_path(folder.path()), format!("{address}\n")).unwrap();
        fs::write(token_path(folder.path()), format!("{token}\n")).unwrap();
        folder
    }

    #[test]
    fn a_flag_goes_before_the_environment() {
        let by_flag = folder("127.0.0.1:1", "one");
        let by_environment = folder("127.0.0.1:2", "two");
        let environment = Environment {
            server: Some("http://127.0.0.1:3".into()),
            data: Some(by_environment.path().into()),
            ..Environment::default()
        };
        let flagged = resolve(None, Some(by_flag.path()), &environment).unwrap();
        assert_eq!((flagged.url.as_str(), flagged.token.as_str()), ("http://127.0.0.1:1", "one"));
        let unflagged = resolve(None, None, &environment).unwrap();
        assert_eq!(
            (unflagged.url.as_str(), unflagged.token.as_str()),
            ("http://127.0.0.1:3", "two")
        );
    }

    /// Otherwise any address in a mistyped --server would get the token.
    #[test]
    fn a_server_of_a_flag_does_not_get_the_token_of_another_folder() {
        let other = folder("127.0.0.1:2", "two");
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
