//! A client that is a disk: for tests, and for what must talk to a served volume without a kernel.
//!
//! Requests are sent as they come and matched to replies by their cookie, so many can be in flight
//! at once. When the server dies, every request that has no answer yet fails with `ESHUTDOWN`, as
//! all later ones: connect again and repeat them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio::task::AbortHandle;

use super::PAYLOAD_BYTES_MAX;
use super::handshake::BASE_ALLOCATION_ID;
use super::stream::{Stream, within};
use super::wire::{
    BASE_ALLOCATION, Command, Cookie, Errno, Fields, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    RawRequest, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, command_flag, handshake_flag,
    info, option, option_reply, state, transmission_flag,
};
use crate::disk::{Allocation, Buffer, Disk, Durability, Extent, Hold};
use crate::unix_socket;

/// A server that doesn't finish its handshake by then counts as dead.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Longest reply to an option that is taken: a name, or an error's text.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// Why no disk came of a connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("connect to the NBD server at {server}")]
    Connect { server: String, source: io::Error },
    #[error("the NBD server at {server} broke off the handshake")]
    Handshake { server: String, source: io::Error },
    #[error("the NBD server at {server} doesn't speak the fixed newstyle protocol")]
    NotFixedNewstyle { server: String },
    #[error("the NBD server at {server} refuses export {export:?}: {reason}")]
    Refused { server: String, export: String, reason: String },
}

/// A disk that a server shows. Must be made and used within a [`tokio::task::LocalSet`].
///
/// Dropping it closes the connection.
pub struct Client {
    shared: Rc<Shared>,
    receiver: AbortHandle,
    size_bytes: u64,
    flags: u16,
    has_allocation: bool,
}

struct Shared {
    stream: Stream,
    /// Held while a request is sent, so that two don't mix.
    sending: Mutex<()>,
    next_cookie: Cell<u64>,
    /// `None` once the connection has broken.
    waiting: RefCell<Option<HashMap<Cookie, Waiting>>>,
}

/// A request without an answer.
struct Waiting {
    /// Where a read's data belongs.
    read: Option<(Extent, Buffer)>,
    answer: oneshot::Sender<Answer>,
}

struct Answer {
    result: Result<(), Errno>,
    read: Option<Buffer>,
    runs: Vec<(u32, u32)>,
}

/// What every request fails with when the connection has broken.
fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESHUTDOWN)
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the NBD server broke the protocol")
}

impl Client {
    /// `export` may be empty, for the default one.
    pub async fn connect_unix(path: &Path, export: &str) -> Result<Self, ConnectError> {
        let server = path.display().to_string();
        match unix_socket::connect(path).await {
            Ok(stream) => Self::open(Stream::Unix(stream), server, export).await,
            Err(source) => Err(ConnectError::Connect { server, source }),
        }
    }

    pub async fn connect_tcp(address: SocketAddr, export: &str) -> Result<Self, ConnectError> {
        let server = address.to_string();
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        match connect.await {
            Ok(stream) => Self::open(Stream::Tcp(stream), server, export).await,
            Err(source) => Err(ConnectError::Connect { server, source }),
        }
    }

    async fn open(stream: Stream, server: String, export: &str) -> Result<Self, ConnectError> {
        let agreed = match within(HANDSHAKE_LIMIT, shake_hands(&stream, export)).await {
            Ok(Ok(agreed)) => agreed,
            Ok(Err(Rejection::NotFixedNewstyle)) => {
                return Err(ConnectError::NotFixedNewstyle { server });
            }
            Ok(Err(Rejection::Refused(reason))) => {
                return Err(ConnectError::Refused { server, export: export.into(), reason });
            }
            Err(source) => return Err(ConnectError::Handshake { server, source }),
        };
        let shared = Rc::new(Shared {
            stream,
            sending: Mutex::new(()),
            next_cookie: Cell::new(0),
            waiting: RefCell::new(Some(HashMap::new())),
        });
        let receiving = shared.clone();
        let receiver = tokio::task::spawn_local(async move {
            let error = receiving.receive_replies().await;
            tracing::debug!(%error, "the NBD connection ended");
            // Dropping the senders tells all who wait.
            receiving.waiting.borrow_mut().take();
        });
        Ok(Self {
            shared,
            receiver: receiver.abort_handle(),
            size_bytes: agreed.size_bytes,
            flags: agreed.flags,
            has_allocation: agreed.has_allocation,
        })
    }

    /// Says goodbye, so that the server doesn't take the end for a crash.
    pub async fn disconnect(self) -> io::Result<()> {
        let raw = RawRequest {
            flags: 0,
            command: Command::Disconnect.to_wire(),
            cookie: Cookie(0),
            offset_bytes: 0,
            length_bytes: 0,
        };
        self.shared.send(&raw.encode(), &[]).await
    }

    /// Sends one request and waits for its answer.
    async fn ask(
        &self,
        command: Command,
        flags: u16,
        at: Extent,
        data: &[u8],
        read: Option<Buffer>,
    ) -> io::Result<Answer> {
        let length_bytes = u32::try_from(at.length_bytes)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let cookie = Cookie(self.shared.next_cookie.get());
        self.shared.next_cookie.set(cookie.0 + 1);
        let raw = RawRequest {
            flags,
            command: command.to_wire(),
            cookie,
            offset_bytes: at.offset_bytes,
            length_bytes,
        };
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { read: read.map(|buffer| (at, buffer)), answer };
        self.shared.waiting.borrow_mut().as_mut().ok_or_else(gone)?.insert(cookie, waiting);
        self.shared.send(&raw.encode(), data).await?;
        answered.await.map_err(|_| gone())
    }

    /// As `ask`, for requests whose answer is only success or failure. Longer ones than a request
    /// may be are cut.
    async fn order(&self, command: Command, flags: u16, at: Extent) -> io::Result<Hold> {
        const PIECE_BYTES_MAX: u64 = 1 << 31;
        let mut rest = at;
        loop {
            let length_bytes = rest.length_bytes.min(PIECE_BYTES_MAX);
            let piece = Extent { length_bytes, ..rest };
            to_io(self.ask(command, flags, piece, &[], None).await?.result)?;
            rest = Extent {
                offset_bytes: piece.end_bytes(),
                length_bytes: rest.length_bytes - length_bytes,
            };
            if rest.length_bytes == 0 {
                return Ok(Hold::none());
            }
        }
    }

    fn require(&self, flag: u16) -> io::Result<()> {
        match self.flags & flag {
            0 => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            _ => Ok(()),
        }
    }

    /// The flag for a forced write, if the server knows it.
    fn durability_flag(&self, durability: Durability) -> io::Result<u16> {
        match durability {
            Durability::Volatile => Ok(0),
            Durability::ForcedUnitAccess => {
                self.require(transmission_flag::SEND_FUA)?;
                Ok(command_flag::FUA)
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

fn to_io(result: Result<(), Errno>) -> io::Result<()> {
    result.map_err(|errno| io::Error::from_raw_os_error(errno.raw_os_error()))
}

/// Requests of at most 32 MiB, which is what every server takes.
impl Disk for Client {
    /// As it was when the connection was made.
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_read_only(&self) -> bool {
        self.flags & transmission_flag::READ_ONLY != 0
    }

    async fn read(&self, at: Extent, into: Buffer) -> (io::Result<Hold>, Buffer) {
        let length_bytes = into.len();
        match self.ask(Command::Read, 0, at, &[], Some(into)).await {
            Ok(Answer { result, read: Some(data), .. }) => {
                (to_io(result).map(|()| Hold::none()), data)
            }
            Ok(_) => (Err(nonsense()), Buffer::zeroed(length_bytes)),
            Err(error) => (Err(error), Buffer::zeroed(length_bytes)),
        }
    }

    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold> {
        let flags = self.durability_flag(durability)?;
        to_io(self.ask(Command::Write, flags, at, &from, None).await?.result)?;
        Ok(Hold::none())
    }

    async fn flush(&self) -> io::Result<()> {
        self.require(transmission_flag::SEND_FLUSH)?;
        let nowhere = Extent { offset_bytes: 0, length_bytes: 0 };
        to_io(self.ask(Command::Flush, 0, nowhere, &[], None).await?.result)
    }

    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        self.require(transmission_flag::SEND_TRIM)?;
        self.order(Command::Trim, 0, at).await
    }

    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold> {
        self.require(transmission_flag::SEND_WRITE_ZEROES)?;
        let flags = self.durability_flag(durability)?;
        self.order(Command::WriteZeroes, flags, at).await
    }

    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        if !self.has_allocation {
            return Ok(vec![(at, Allocation::Data)]);
        }
        let mut runs = Vec::new();
        let mut next = at.offset_bytes;
        while next < at.end_bytes() {
            let length_bytes = (at.end_bytes() - next).min(1 << 31);
            let piece = Extent { offset_bytes: next, length_bytes };
            let answer = self.ask(Command::BlockStatus, 0, piece, &[], None).await?;
            to_io(answer.result)?;
            let before = next;
            for (length, flags) in answer.runs {
                let length_bytes = u64::from(length).min(at.end_bytes() - next);
                let allocation = match flags & state::ZERO {
                    0 => Allocation::Data,
                    _ => Allocation::Zero,
                };
                if length_bytes > 0 {
                    runs.push((Extent { offset_bytes: next, length_bytes }, allocation));
                }
                next += length_bytes;
            }
            if next == before {
                return Err(nonsense());
            }
        }
        Ok(runs)
    }

    /// Not part of the protocol.
    async fn resize(&self, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
}

impl Shared {
    async fn send(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let _sending = self.sending.lock().await;
        if self.waiting.borrow().is_none() {
            return Err(gone());
        }
        let mut whole = Whole { shared: self, is_sent: false };
        let mut pieces = [IoSlice::new(header), IoSlice::new(data)];
        self.stream.write_all_vectored(&mut pieces).await.map_err(|_| gone())?;
        whole.is_sent = true;
        Ok(())
    }

    /// Hands out replies until the connection breaks.
    async fn receive_replies(&self) -> io::Error {
        loop {
            if let Err(error) = self.receive_reply().await {
                return error;
            }
        }
    }

    async fn receive_reply(&self) -> io::Result<()> {
        let mut start = [0; 16];
        self.stream.read_exact(&mut start).await?;
        let mut fields = Fields(&start);
        match fields.u32() {
            Some(SIMPLE_REPLY_MAGIC) => {
                let errno = fields.u32().ok_or_else(nonsense)?;
                let cookie = Cookie(fields.u64().ok_or_else(nonsense)?);
                let mut waiting = self.take(cookie)?;
                let result = if errno == 0 { Ok(()) } else { Err(Errno::from_wire(errno)) };
                if let (Ok(()), Some((_, buffer))) = (result, &mut waiting.read) {
                    self.stream.read_exact(buffer).await?;
                }
                waiting.answer(result, Vec::new());
                Ok(())
            }
            Some(STRUCTURED_REPLY_MAGIC) => {
                let flags = fields.u16().ok_or_else(nonsense)?;
                let kind = fields.u16().ok_or_else(nonsense)?;
                let cookie = Cookie(fields.u64().ok_or_else(nonsense)?);
                self.receive_chunk(flags, kind, cookie).await
            }
            _ => Err(nonsense()),
        }
    }

    /// Our server answers in one chunk, and this client asks no other to do so: a reply of
    /// several is taken for a broken protocol, and never for half an answer.
    async fn receive_chunk(&self, flags: u16, kind: u16, cookie: Cookie) -> io::Result<()> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await?;
        let length = u32::from_be_bytes(length) as usize;
        if flags & chunk::FLAG_DONE == 0 || length > PAYLOAD_BYTES_MAX as usize + 8 {
            return Err(nonsense());
        }
        let mut waiting = self.take(cookie)?;
        if kind == chunk::OFFSET_DATA {
            let (at, buffer) = waiting.read.as_mut().ok_or_else(nonsense)?;
            let mut offset = [0; 8];
            self.stream.read_exact(&mut offset).await?;
            if u64::from_be_bytes(offset) != at.offset_bytes || length != buffer.len() + 8 {
                return Err(nonsense());
            }
            self.stream.read_exact(buffer).await?;
            waiting.answer(Ok(()), Vec::new());
            return Ok(());
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        let mut fields = Fields(&payload);
        if kind & chunk::IS_ERROR != 0 {
            let errno = fields.u32().ok_or_else(nonsense)?;
            waiting.answer(Err(Errno::from_wire(errno)), Vec::new());
        } else if kind == chunk::BLOCK_STATUS && fields.u32() == Some(BASE_ALLOCATION_ID) {
            let runs = std::iter::from_fn(|| fields.u32().zip(fields.u32())).collect();
            waiting.answer(Ok(()), runs);
        } else if kind == chunk::NONE && waiting.read.is_none() {
            waiting.answer(Ok(()), Vec::new());
        } else {
            return Err(nonsense());
        }
        Ok(())
    }

    fn take(&self, cookie: Cookie) -> io::Result<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        waiting.as_mut().and_then(|waiting| waiting.remove(&cookie)).ok_or_else(nonsense)
    }
}

/// A message that was sent in part (its caller gave up, or the socket failed) makes everything
/// after it unintelligible, so the connection ends there.
struct Whole<'a> {
    shared: &'a Shared,
    is_sent: bool,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if !self.is_sent {
            self.shared.waiting.borrow_mut().take();
        }
    }
}

impl Waiting {
    fn answer(self, result: Result<(), Errno>, runs: Vec<(u32, u32)>) {
        let read = self.read.map(|(_, buffer)| buffer);
        // Whoever asked may have given up.
        let _ = self.answer.send(Answer { result, read, runs });
    }
}

struct Agreed {
    size_bytes: u64,
    flags: u16,
    has_allocation: bool,
}

enum Rejection {
    NotFixedNewstyle,
    Refused(String),
}

/// One reply to an option.
struct OptionReply {
    kind: u32,
    data: Vec<u8>,
}

impl OptionReply {
    fn is_final(&self) -> bool {
        self.kind == option_reply::ACK || self.kind & option_reply::IS_ERROR != 0
    }
}

async fn shake_hands(stream: &Stream, export: &str) -> io::Result<Result<Agreed, Rejection>> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await?;
    let mut fields = Fields(&greeting);
    let magics = (fields.u64(), fields.u64());
    let offered = fields.u16().unwrap_or_default();
    if magics != (Some(INIT_MAGIC), Some(OPTION_MAGIC))
        || offered & handshake_flag::FIXED_NEWSTYLE == 0
    {
        return Ok(Err(Rejection::NotFixedNewstyle));
    }
    let known = offered & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
    stream.write_all(&u32::from(known).to_be_bytes()).await?;

    let name_length = u32::try_from(export.len()).map_err(|_| nonsense())?.to_be_bytes();
    let name = [&name_length, export.as_bytes()].concat();
    let mut has_allocation = false;
    let structured = haggle(stream, option::STRUCTURED_REPLY, &[]).await?;
    if structured.iter().any(|reply| reply.kind == option_reply::ACK) {
        let query = [
            &name[..],
            &1_u32.to_be_bytes(),
            &(BASE_ALLOCATION.len() as u32).to_be_bytes(),
            BASE_ALLOCATION.as_bytes(),
        ];
        let contexts = haggle(stream, option::SET_META_CONTEXT, &query.concat()).await?;
        // Another server's number isn't understood later, so do without.
        has_allocation = contexts.iter().any(|reply| {
            reply.kind == option_reply::META_CONTEXT
                && Fields(&reply.data).u32() == Some(BASE_ALLOCATION_ID)
        });
    }
    let go = [&name[..], &1_u16.to_be_bytes(), &info::BLOCK_SIZE.to_be_bytes()].concat();
    let mut agreed = None;
    for reply in haggle(stream, option::GO, &go).await? {
        if reply.kind & option_reply::IS_ERROR != 0 {
            let text = String::from_utf8_lossy(&reply.data);
            let reason = format!("{text} (error {})", reply.kind & !option_reply::IS_ERROR);
            return Ok(Err(Rejection::Refused(reason)));
        }
        let mut fields = Fields(&reply.data);
        if reply.kind == option_reply::INFO && fields.u16() == Some(info::EXPORT) {
            let size_bytes = fields.u64().ok_or_else(nonsense)?;
            let flags = fields.u16().ok_or_else(nonsense)?;
            agreed = Some(Agreed { size_bytes, flags, has_allocation });
        }
    }
    agreed.map(Ok).ok_or_else(nonsense)
}

/// Sends one option and collects its replies, the last of which is final.
async fn haggle(stream: &Stream, option: u32, data: &[u8]) -> io::Result<Vec<OptionReply>> {
    let length = u32::try_from(data.len()).map_err(|_| nonsense())?;
    let head = [&option.to_be_bytes()[..], &length.to_be_bytes(), data].concat();
    stream.write_all(&[&OPTION_MAGIC.to_be_bytes()[..], &head].concat()).await?;
    let mut replies = Vec::new();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).await?;
        let mut fields = Fields(&header);
        if (fields.u64(), fields.u32()) != (Some(OPTION_REPLY_MAGIC), Some(option)) {
            return Err(nonsense());
        }
        let kind = fields.u32().ok_or_else(nonsense)?;
        let length = fields.u32().filter(|length| *length <= OPTION_REPLY_BYTES_MAX);
        let mut data = vec![0; length.ok_or_else(nonsense)? as usize];
        stream.read_exact(&mut data).await?;
        let reply = OptionReply { kind, data };
        let is_final = reply.is_final();
        replies.push(reply);
        if is_final {
            return Ok(replies);
        }
    }
}
