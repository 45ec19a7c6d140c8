//! The way to the bytes of a volume: its socket, or its device.
//!
//! An engine that dies takes its NBD connections with it: connect again and repeat what has no
//! answer. A device needs none of that, the kernel waits for the next engine.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_api::ApiError;
use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_blockdev::nbd;
use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::report::Progress;
use super::trouble::{Result, Trouble, failed};

/// An engine that opens a large volume after a crash compares its copies first.
const PATIENCE: Duration = Duration::from_secs(300);
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);
const PIECE_BYTES: u64 = 1 << 20;
const PIECES_IN_FLIGHT: usize = 4;

/// Where a volume is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Socket(PathBuf),
    Device(PathBuf),
}

impl Endpoint {
    pub(super) fn parse(endpoint: &str) -> std::result::Result<Self, ApiError> {
        if endpoint.starts_with("/dev/") {
            return Ok(Self::Device(endpoint.into()));
        }
        let socket = endpoint.strip_prefix("nbd+unix:///?socket=").and_then(percent_decoded);
        let strange = || ApiError::failed(format!("the endpoint {endpoint} isn't understood"));
        socket.map(Self::Socket).ok_or_else(strange)
    }

    /// Of all bytes of the volume.
    pub(super) fn open(&self) -> Result<Channel> {
        match self {
            Self::Socket(socket) => Ok(Channel::Socket(Reconnecting {
                socket: socket.clone(),
                client: RefCell::default(),
                connecting: tokio::sync::Mutex::default(),
                connections: Cell::new(0),
            })),
            Self::Device(device) => Channel::file(device, false),
        }
    }
}

fn percent_decoded(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8
            }
            byte => byte,
        });
    }
    Some(std::ffi::OsString::from_vec(bytes).into())
}

/// Must be used within a [`tokio::task::LocalSet`].
pub(super) enum Channel {
    Socket(Reconnecting),
    /// Opened for direct I/O.
    File(Arc<File>),
}

pub(super) struct Reconnecting {
    socket: PathBuf,
    client: RefCell<Option<Rc<nbd::Client>>>,
    connecting: tokio::sync::Mutex<()>,
    connections: Cell<u32>,
}

impl Channel {
    pub(super) fn file(path: &Path, create: bool) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(create);
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
        Ok(Self::File(Arc::new(options.open(path).map_err(failed("open", path))?)))
    }

    /// How often a connection had to be made again.
    pub(super) fn reconnects(&self) -> u32 {
        match self {
            Self::Socket(socket) => socket.connections.get().saturating_sub(1),
            Self::File(_) => 0,
        }
    }

    pub(super) async fn read(&self, offset_bytes: u64, length: usize) -> io::Result<Buffer> {
        let at = Extent { offset_bytes, length_bytes: length as u64 };
        match self {
            Self::Socket(socket) => {
                let read = async |client: &nbd::Client| {
                    let (outcome, data) = client.read(at, Buffer::zeroed(length)).await;
                    outcome.map(|_hold| data)
                };
                socket.ask(read).await
            }
            Self::File(file) => {
                let file = Arc::clone(file);
                blocking(move || {
                    let mut data = Buffer::zeroed(length);
                    file.read_exact_at(&mut data, offset_bytes).map(|()| data)
                })
                .await
            }
        }
    }

    pub(super) async fn write(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        let at = Extent { offset_bytes, length_bytes: data.len() as u64 };
        match self {
            Self::Socket(socket) => {
                let write = async |client: &nbd::Client| {
                    let data = Buffer::copy_of(data);
                    client.write(at, data, Durability::Volatile).await.map(|_hold| ())
                };
                socket.ask(write).await
            }
            Self::File(file) => {
                let (file, data) = (Arc::clone(file), Buffer::copy_of(data));
                blocking(move || file.write_all_at(&data, offset_bytes)).await
            }
        }
    }

    pub(super) async fn flush(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => {
                socket.ask(async |client: &nbd::Client| client.flush().await).await
            }
            Self::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.sync_data()).await
            }
        }
    }

    /// What `image` holds, to the same offsets; its holes are taken to be zero here, too.
    pub(super) async fn copy_from(&self, image: &Path, progress: &Progress<'_>) -> Result<u64> {
        let file = File::open(image).map_err(failed("open", image))?;
        let mut pieces = Vec::new();
        for (start, end) in data_runs(&file).map_err(failed("read", image))? {
            let starts = (start..end).step_by(PIECE_BYTES as usize);
            pieces.extend(starts.map(|at| (at, PIECE_BYTES.min(end - at) as usize)));
        }
        let bytes = pieces.iter().map(|(_, length)| *length as u64).sum();
        progress.expect(bytes);
        let copies = stream::iter(pieces).map(|(at, length)| {
            let file = &file;
            async move {
                let mut data = vec![0; length];
                file.read_exact_at(&mut data, at).map_err(failed("read", image))?;
                self.write(at, &data).await.map_err(|error| on_volume("write", at, &error))?;
                progress.advance(length as u64)
            }
        });
        copies.buffer_unordered(PIECES_IN_FLIGHT).try_for_each(async |()| Ok(())).await?;
        self.flush().await.map_err(|error| on_volume("flush", 0, &error))?;
        Ok(bytes)
    }

    /// SHA-256 of all bytes.
    pub(super) async fn checksum(&self, size_bytes: u64, progress: &Progress<'_>) -> Result<Sum> {
        progress.expect(size_bytes);
        let offsets = stream::iter((0..size_bytes).step_by(PIECE_BYTES as usize));
        let mut pieces = offsets
            .map(|at| async move {
                let length = PIECE_BYTES.min(size_bytes - at) as usize;
                self.read(at, length).await.map_err(|error| on_volume("read", at, &error))
            })
            .buffered(PIECES_IN_FLIGHT);
        let mut hash = Sha256::new();
        while let Some(data) = pieces.try_next().await? {
            hash.update(&data[..]);
            progress.advance(data.len() as u64)?;
        }
        Ok(Sum(hash.finalize().into()))
    }
}

impl Reconnecting {
    /// Asks until there is an answer.
    async fn ask<T>(&self, question: impl AsyncFn(&nbd::Client) -> io::Result<T>) -> io::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let gone = Errno::SHUTDOWN.raw_os_error();
        let ask = async {
            loop {
                let client = self.client(deadline).await?;
                match question(&client).await {
                    Err(error) if error.raw_os_error() == Some(gone) => self.forget(&client),
                    answer => return answer,
                }
            }
        };
        let in_vain = io::Error::new(io::ErrorKind::TimedOut, "no answer");
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(in_vain))
    }

    async fn client(&self, deadline: Instant) -> io::Result<Rc<nbd::Client>> {
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(client) = &*self.client.borrow() {
            return Ok(Rc::clone(client));
        }
        loop {
            match nbd::Client::connect_unix(&self.socket, "").await {
                Ok(client) => {
                    let client = Rc::new(client);
                    *self.client.borrow_mut() = Some(Rc::clone(&client));
                    self.connections.set(self.connections.get() + 1);
                    return Ok(client);
                }
                Err(error) if Instant::now() > deadline => return Err(io::Error::other(error)),
                Err(_) => tokio::time::sleep(RECONNECT_PAUSE).await,
            }
        }
    }

    /// Unless somebody has connected again meanwhile.
    fn forget(&self, dead: &Rc<nbd::Client>) {
        self.client.borrow_mut().take_if(|client| Rc::ptr_eq(client, dead));
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

pub(super) fn on_volume(what: &str, offset_bytes: u64, error: &io::Error) -> Trouble {
    let text = format!("a {what} at byte {offset_bytes} of the volume failed: {error}");
    ApiError::failed(text).into()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum([u8; 32]);

impl Sum {
    pub(super) fn of_file(path: &Path, progress: &Progress<'_>) -> Result<Self> {
        use std::io::Read;
        let mut file = File::open(path).map_err(failed("open", path))?;
        let mut hash = Sha256::new();
        let mut data = vec![0; PIECE_BYTES as usize];
        loop {
            match file.read(&mut data).map_err(failed("read", path))? {
                0 => return Ok(Self(hash.finalize().into())),
                length => {
                    hash.update(&data[..length]);
                    progress.advance(length as u64)?;
                }
            }
        }
    }

    pub(super) fn expect(self, wanted: Self, what: &str) -> Result<()> {
        if self == wanted {
            return Ok(());
        }
        let text = format!("{what} has the SHA-256 {self}, and what was written has {wanted}");
        Err(Trouble::Mismatch(text))
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// From, to: what isn't a hole.
fn data_runs(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let mut runs = Vec::new();
    let mut at = 0;
    loop {
        match seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = seek(file, SeekFrom::Hole(start))?;
                runs.push((start, at));
            }
            Err(Errno::NXIO) => return Ok(runs),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_devices_or_sockets_whose_path_may_hold_anything() {
        let parse = |text| Endpoint::parse(text).ok();
        assert_eq!(parse("/dev/ublkb0"), Some(Endpoint::Device("/dev/ublkb0".into())));
        let socket = parse("nbd+unix:///?socket=/a%20b/%C3%BC.nbd");
        assert_eq!(socket, Some(Endpoint::Socket("/a b/ü.nbd".into())));
        for wrong in ["", "nbd://127.0.0.1:1", "nbd+unix:///?socket=%", "nbd+unix:///?socket=%zz"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
