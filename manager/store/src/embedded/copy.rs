//! The copy of the store: a file beside it with every object, for the day when the store is gone.
//!
//! ```text
//! ankole store copy 2
//! {"version":12,"takenUnixS":…}
//! {"key":"volumes/v1","version":7,"json":"{…}"}         a line for each object
//! sum 89abcdef01234567                                  of all lines before, XXH3
//! ```
//! That of formats 1 and 2 can be read, too (`ankole store copy 1 SUM`, then all objects as one JSON).
//!
//! Taken at the start, at most a second after a change, and at a clean end; each time whole, so that
//! the file is the last one or the one before. With so many objects that one takes long, at most a
//! tenth of the time is spent on it. It is never newer than the store, and may be older: what it says
//! is believed only where that does no harm.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ankole_api::error::chain;
use ankole_whole_file as whole_file;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::EmbeddedStore;
use super::file::{StoredObject, stored};
use crate::shared::Shared;

const TITLE: &str = "ankole store copy 2";
const OLDER_TITLE: &str = "ankole store copy 1 ";
/// Changes come in bursts: many are in one copy.
const SETTLE: Duration = Duration::from_secs(1);
/// After a copy, so many times as long as it took.
const REST: u32 = 9;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreCopy {
    /// Of the last change that is in it.
    pub version: u64,
    pub taken_unix_s: u64,
    pub objects: Vec<StoredObject>,
    /// Of a store of format 1 or 2: its objects are as [`read_older`](super::read_older) gives them.
    pub is_older: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    version: u64,
    taken_unix_s: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the store's copy {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the store's copy {path} is damaged: {what}")]
    Damaged { path: PathBuf, what: &'static str },
}

pub fn path_of(store: &Path) -> PathBuf {
    whole_file::beside(store, ".copy")
}

impl StoreCopy {
    /// None if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, CopyError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CopyError::Io { path: path.into(), source }),
        };
        let damaged = |what| CopyError::Damaged { path: path.into(), what };
        let text = std::str::from_utf8(&text).map_err(|_| damaged("it isn't text"))?;
        if let Some(older) = text.strip_prefix(OLDER_TITLE) {
            return Self::parse_older(older).map(Some).map_err(damaged);
        }
        let last = text.trim_end_matches('\n').rfind('\n').map_or(0, |end| end + 1);
        let (body, sum) = text.split_at(last);
        if sum != sum_line(XxHash3_64::oneshot(body.as_bytes())) {
            return Err(damaged("its sum isn't that of what it holds"));
        }
        let mut lines = body.lines();
        if lines.next() != Some(TITLE) {
            return Err(damaged("it is no copy of this version"));
        }
        let unparsed = |_| damaged("it can't be parsed");
        let head: Head = serde_json::from_str(lines.next().unwrap_or("")).map_err(unparsed)?;
        let objects = lines.map(serde_json::from_str).collect::<Result<_, _>>();
        let Head { version, taken_unix_s } = head;
        let objects = objects.map_err(unparsed)?;
        Ok(Some(Self { version, taken_unix_s, objects, is_older: false }))
    }

    /// What follows the title.
    fn parse_older(text: &str) -> Result<Self, &'static str> {
        let (sum, body) = text.split_once('\n').ok_or("it is cut short")?;
        if sum != format!("{:016x}", XxHash3_64::oneshot(body.as_bytes())) {
            return Err("its sum isn't that of what it holds");
        }
        let copy: OlderCopy = serde_json::from_str(body).map_err(|_| "it can't be parsed")?;
        let version = copy.version;
        let objects = copy.objects.into_iter().map(|OlderObject { kind, name, json }| {
            let table = match kind {
                OlderKind::Volume => "volumes",
                OlderKind::BackupTarget => "backup-targets",
            };
            StoredObject { key: format!("{table}/{name}"), version, json }
        });
        let objects = objects.collect();
        Ok(Self { version, taken_unix_s: copy.taken_unix_s, objects, is_older: true })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OlderCopy {
    version: u64,
    taken_unix_s: u64,
    objects: Vec<OlderObject>,
}

#[derive(Deserialize)]
struct OlderObject {
    kind: OlderKind,
    name: String,
    json: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum OlderKind {
    Volume,
    BackupTarget,
}

fn sum_line(sum: u64) -> String {
    format!("sum {sum:016x}\n")
}

/// Takes copies of a store as it changes.
pub struct Copies {
    shared: Arc<Shared>,
    path: PathBuf,
    /// The version of the last one.
    last: Mutex<Option<u64>>,
}

impl Copies {
    pub fn new(store: &EmbeddedStore, path: PathBuf) -> Self {
        Self { shared: Arc::clone(&store.shared), path, last: Mutex::default() }
    }

    /// Unless nothing has changed since the last one.
    pub fn take(&self) -> Result<(), CopyError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == Some(self.shared.read().revision()) {
            return Ok(());
        }
        // Objects are shared: this holds up no writer for longer than it takes to count them.
        let state = self.shared.read().snapshot();
        let draft = whole_file::beside(&self.path, ".new");
        let written = write(&draft, state.revision(), stored(&state));
        let placed = written.and_then(|()| whole_file::put(&draft, &self.path));
        placed.map_err(|source| {
            // On a full disk what was written of it would only stand in the way.
            let _ = fs::remove_file(&draft);
            CopyError::Io { path: self.path.clone(), source }
        })?;
        *last = Some(state.revision());
        Ok(())
    }

    /// For as long as the process lives. A copy that fails is taken with the next change.
    pub async fn follow(self: Arc<Self>) {
        let mut changes = self.shared.changes();
        while changes.changed().await.is_ok() {
            tokio::time::sleep(SETTLE).await;
            changes.borrow_and_update();
            let copies = Arc::clone(&self);
            let start = Instant::now();
            match tokio::task::spawn_blocking(move || copies.take()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = chain(&error), "copy the store"),
                Err(_) => return, // the process ends, or the panic is in its log
            }
            let rest = start.elapsed() * REST;
            tokio::time::sleep(rest.saturating_sub(SETTLE)).await;
        }
    }
}

fn write(
    draft: &Path,
    version: u64,
    objects: impl Iterator<Item = StoredObject>,
) -> io::Result<()> {
    whole_file::remove_if_there(draft)?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(draft)?;
    let mut out = Summed { file: BufWriter::with_capacity(1 << 16, &file), sum: XxHash3_64::new() };
    let taken = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    writeln!(out, "{TITLE}")?;
    serde_json::to_writer(&mut out, &Head { version, taken_unix_s: taken.as_secs() })?;
    writeln!(out)?;
    for object in objects {
        serde_json::to_writer(&mut out, &object)?;
        writeln!(out)?;
    }
    let sum = sum_line(out.sum.finish());
    out.write_all(sum.as_bytes())?;
    out.flush()?;
    drop(out);
    file.sync_all()
}

struct Summed<W> {
    file: W,
    sum: XxHash3_64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes)?;
        self.sum.write(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
