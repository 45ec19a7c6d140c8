//! What is asked of an engine over its admin socket.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ankole_replica::admin::{Answer, EngineStatus, Request};
use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A rebuild may be in the way of a snapshot.
const PATIENCE: Duration = Duration::from_secs(120);

async fn ask(socket: &Path, request: &Request) -> anyhow::Result<Answer> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        anyhow::Ok(serde_json::from_str(&answer)?)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await;
    answer.map_err(anyhow::Error::from).flatten().with_context(|| format!("ask for {request:?}"))
}

async fn done(socket: &Path, request: &Request) -> anyhow::Result<()> {
    match ask(socket, request).await? {
        Answer::Ok => Ok(()),
        answer => bail!("{request:?} was answered by {answer:?}"),
    }
}

pub async fn snapshot(socket: &Path, name: &str) -> anyhow::Result<()> {
    done(socket, &Request::Snapshot { name: name.into(), labels: BTreeMap::new() }).await
}

pub async fn remove_snapshot(socket: &Path, name: &str) -> anyhow::Result<()> {
    done(socket, &Request::RemoveSnapshot { name: name.into() }).await
}

pub async fn detach(socket: &Path) -> anyhow::Result<()> {
    done(socket, &Request::Detach).await
}

pub async fn status(socket: &Path) -> anyhow::Result<EngineStatus> {
    match ask(socket, &Request::Status).await? {
        Answer::Status(status) => Ok(*status),
        answer => bail!("Status was answered by {answer:?}"),
    }
}
