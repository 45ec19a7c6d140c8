//! The engine's way to the arbiter.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use ankole_blockdev::unix_socket;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::record::{Answer, Change, Record, Refused, Request};
use crate::types::Generation;

/// After this the answer counts as lost, and the request is repeated.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// No answer: what was asked may have been done, may be done later, or never.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    #[error("arbiter at {place}: {source}")]
    Unreachable { place: String, source: io::Error },
    #[error("arbiter at {place}: {message}")]
    Failed { place: String, message: String },
}

type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, ArbiterError>> + 'a>>;

/// Keeps the volume's record by consensus.
pub trait Arbiter {
    fn read<'a>(&'a self, volume: &'a str) -> Asked<'a, Record>;
    fn change<'a>(
        &'a self,
        volume: &'a str,
        expected: Generation,
        change: &'a Change,
    ) -> Asked<'a, Result<Record, Refused>>;
}

/// An arbiter in this process, for engines that tests and examples start. It forgets with it.
#[derive(Clone)]
pub struct MemoryArbiter(pub Rc<RefCell<Record>>);

impl Arbiter for MemoryArbiter {
    fn read<'a>(&'a self, _volume: &'a str) -> Asked<'a, Record> {
        Box::pin(async { Ok(self.0.borrow().clone()) })
    }

    fn change<'a>(
        &'a self,
        _volume: &'a str,
        expected: Generation,
        change: &'a Change,
    ) -> Asked<'a, Result<Record, Refused>> {
        Box::pin(async move {
            let after = self.0.borrow().after(expected, change.clone());
            if let Ok(record) = &after {
                self.0.replace(record.clone());
            }
            Ok(after)
        })
    }
}

/// An arbiter behind a unix socket, one line of JSON each way.
pub struct SocketArbiter {
    path: PathBuf,
}

impl SocketArbiter {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    async fn ask(&self, request: &Request) -> Result<Answer, ArbiterError> {
        let unreachable = |source| {
            let place = self.path.display().to_string();
            ArbiterError::Unreachable { place, source }
        };
        let exchange = async {
            let mut stream = unix_socket::connect(&self.path).await?;
            let mut line = serde_json::to_vec(request)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).await?;
            if answer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(serde_json::from_str(&answer)?)
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(_) => Err(unreachable(io::ErrorKind::TimedOut.into())),
        }
    }

    fn failed(&self, message: String) -> ArbiterError {
        ArbiterError::Failed { place: self.path.display().to_string(), message }
    }
}

impl Arbiter for SocketArbiter {
    fn read<'a>(&'a self, volume: &'a str) -> Asked<'a, Record> {
        Box::pin(async move {
            match self.ask(&Request::Read { volume: volume.into() }).await? {
                Answer::Record(record) => Ok(record),
                Answer::Refused(refused) => Ok(refused.into_record()),
                Answer::Error { message } => Err(self.failed(message)),
            }
        })
    }

    fn change<'a>(
        &'a self,
        volume: &'a str,
        expected: Generation,
        change: &'a Change,
    ) -> Asked<'a, Result<Record, Refused>> {
        Box::pin(async move {
            let change = change.clone();
            match self.ask(&Request::Change { volume: volume.into(), expected, change }).await? {
                Answer::Record(record) => Ok(Ok(record)),
                Answer::Refused(refused) => Ok(Err(refused)),
                Answer::Error { message } => Err(self.failed(message)),
            }
        })
    }
}
