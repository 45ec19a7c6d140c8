//! Asking an engine on its admin socket.

use std::path::Path;

use ankole_replica::admin::{Answer, EngineStatus, Request};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// One request on a connection of its own. An error means that nothing is known of what became of
/// it: the engine isn't there, or went away.
pub async fn ask(socket: &Path, request: &Request) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}

pub async fn status(socket: &Path) -> Option<Box<EngineStatus>> {
    match ask(socket, &Request::Status).await {
        Ok(Answer::Status(status)) => Some(status),
        _ => None,
    }
}
