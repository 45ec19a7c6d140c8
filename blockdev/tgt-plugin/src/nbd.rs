//! A minimal NBD client for several threads: each call blocks its own thread until it is answered.
//!
//! Follows `doc/proto.md` of NetworkBlockDevice/nbd: fixed newstyle handshake, simple replies. When
//! the connection breaks, since the engine was replaced, it is made anew and what wasn't answered is
//! sent again: a request may be carried out twice, which changes nothing.
//!
//! ```text
//! call: pending ─▶ socket ─────▶ engine
//!   ▲ waits                        │
//!   └─ answered ◀─ reader thread ◀─┘   on a break: connects, sends all that is pending
//! ```

#![expect(unsafe_code, reason = "a reply's data goes straight into the caller's buffer")]

use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// FIXED_NEWSTYLE and NO_ZEROES, of server and client.
const HANDSHAKE_FLAGS: u16 = 3;
const OPTION_GO: u32 = 7;
const OPTION_REPLY_ACK: u32 = 1;
const OPTION_REPLY_INFO: u32 = 3;
const OPTION_REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const OPTION_BYTES_MAX: u32 = 64 << 10;
const COMMAND_DISCONNECT: u16 = 2;
const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;

const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What is asked of the disk.
pub enum Request<'a> {
    Read {
        offset: u64,
        into: &'a mut [u8],
    },
    Write {
        offset: u64,
        from: &'a [u8],
        forced: bool,
    },
    Flush,
    Discard {
        offset: u64,
        length: u32,
    },
    /// Space stays taken.
    Zero {
        offset: u64,
        length: u32,
    },
}

pub struct Client {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// Somebody's request was answered.
    answered: Condvar,
    /// Held while bytes go out, so that requests don't mix.
    out: Mutex<Option<UnixStream>>,
}

#[derive(Default)]
struct State {
    next_cookie: u64,
    pending: BTreeMap<u64, Pending>,
    answers: BTreeMap<u64, Result<(), i32>>,
    is_closing: bool,
}

/// Its pointers are valid until it is answered, since its caller waits.
struct Pending {
    header: [u8; 28],
    out: (*const u8, usize),
    into: (*mut u8, usize),
}

// SAFETY: the pointers lead to memory that the waiting caller has lent for the call; the reader
// writes `into` once, before it says that the request is answered.
unsafe impl Send for Pending {}

impl Client {
    /// And the disk's size in bytes.
    pub fn connect(path: &Path) -> io::Result<(Self, u64)> {
        let (stream, size_bytes) = shake_hands(path)?;
        let out = Mutex::new(Some(stream.try_clone()?));
        let (state, answered) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { path: path.to_owned(), state, answered, out });
        let of_reader = shared.clone();
        let reader = crate::thread::spawn("ankole-nbd", move || of_reader.read(stream))?;
        Ok((Self { shared, reader: Some(reader) }, size_bytes))
    }

    /// Waits for the answer, as long as it takes. An error is a number of errno.
    pub fn call(&self, request: Request<'_>) -> Result<(), i32> {
        let mut out = lock(&self.shared.out);
        let cookie = {
            let mut state = lock(&self.shared.state);
            if state.is_closing {
                return Err(libc::ESHUTDOWN);
            }
            let cookie = state.next_cookie;
            state.next_cookie += 1;
            let pending = Pending::new(cookie, request);
            state.pending.insert(cookie, pending);
            cookie
        };
        // A break is the reader's to notice: it sends again what is pending.
        if let Some(stream) = &mut *out {
            let _ = self.shared.send(stream, cookie);
        }
        drop(out);
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(answer) = state.answers.remove(&cookie) {
                return answer;
            }
            state = self.shared.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Client {
    /// What waits is answered with an error, and what is asked later too.
    pub fn close(&self) {
        lock(&self.shared.state).is_closing = true;
        if let Some(stream) = &mut *lock(&self.shared.out) {
            let _ = stream.write_all(&header(COMMAND_DISCONNECT, 0, 0, 0, 0));
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Shared {
    /// With `out` held. The request may have been answered meanwhile, by an earlier sending.
    fn send(&self, stream: &mut UnixStream, cookie: u64) -> io::Result<()> {
        let (header, (data, length)) = match lock(&self.state).pending.get(&cookie) {
            Some(pending) => (pending.header, pending.out),
            None => return Ok(()),
        };
        let data = if length == 0 {
            &[][..]
        } else {
            // SAFETY: who sends is the caller, whose memory it is, or the reader, which alone
            // answers what the caller waits for.
            unsafe { std::slice::from_raw_parts(data, length) }
        };
        write_all(stream, &header, data)
    }

    /// Body of the reader thread.
    fn read(&self, mut stream: UnixStream) {
        loop {
            let broken = self.read_replies(&mut stream);
            if let Err(error) = broken {
                crate::log(&format!("{}: lost the connection: {error}", self.path.display()));
            }
            let mut pause = RETRY_MIN;
            stream = loop {
                if lock(&self.state).is_closing {
                    return self.give_up();
                }
                std::thread::sleep(pause); // an engine that ends may still take connections
                match self.reconnect() {
                    Ok(stream) => break stream,
                    Err(_) => pause = (2 * pause).min(RETRY_MAX),
                }
            };
            crate::log(&format!("{}: connected again", self.path.display()));
        }
    }

    fn read_replies(&self, stream: &mut UnixStream) -> io::Result<()> {
        let mut reply = [0; 16];
        loop {
            stream.read_exact(&mut reply)?;
            let (magic, errno) = (u32_at(&reply, 0), u32_at(&reply, 4).cast_signed());
            let cookie = u64_at(&reply, 8);
            let into = lock(&self.state).pending.get(&cookie).map(|pending| pending.into);
            let (true, Some((into, length))) = (magic == REPLY_MAGIC, into) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not a reply to a request"));
            };
            if errno == libc::ESHUTDOWN {
                return Err(io::Error::from_raw_os_error(errno)); // the next engine is asked
            }
            if errno == 0 && length > 0 {
                // SAFETY: the caller has lent this memory and waits for the answer, which is given
                // below; nobody else touches it.
                let into = unsafe { std::slice::from_raw_parts_mut(into, length) };
                stream.read_exact(into)?;
            }
            let mut state = lock(&self.state);
            state.pending.remove(&cookie);
            state.answers.insert(cookie, if errno == 0 { Ok(()) } else { Err(errno) });
            self.answered.notify_all();
        }
    }

    fn reconnect(&self) -> io::Result<UnixStream> {
        let mut out = lock(&self.out);
        *out = None;
        let (stream, _) = shake_hands(&self.path)?;
        let mut sending = stream.try_clone()?;
        let cookies: Vec<u64> = lock(&self.state).pending.keys().copied().collect();
        for cookie in cookies {
            self.send(&mut sending, cookie)?;
        }
        *out = Some(sending);
        Ok(stream)
    }

    fn give_up(&self) {
        let mut state = lock(&self.state);
        for cookie in std::mem::take(&mut state.pending).into_keys() {
            state.answers.insert(cookie, Err(libc::ESHUTDOWN));
        }
        self.answered.notify_all();
    }
}

impl Pending {
    fn new(cookie: u64, request: Request<'_>) -> Self {
        let nothing_out = (std::ptr::null(), 0);
        let nothing_in = (std::ptr::null_mut(), 0);
        let with = |kind, flags, offset, length| header(kind, flags, cookie, offset, length);
        let short = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        match request {
            Request::Read { offset, into } => Self {
                header: with(0, 0, offset, short(into.len())),
                out: nothing_out,
                into: (into.as_mut_ptr(), into.len()),
            },
            Request::Write { offset, from, forced } => Self {
                header: with(1, if forced { FLAG_FUA } else { 0 }, offset, short(from.len())),
                out: (from.as_ptr(), from.len()),
                into: nothing_in,
            },
            Request::Flush => Self { header: with(3, 0, 0, 0), out: nothing_out, into: nothing_in },
            Request::Discard { offset, length } => {
                Self { header: with(4, 0, offset, length), out: nothing_out, into: nothing_in }
            }
            Request::Zero { offset, length } => Self {
                header: with(6, FLAG_NO_HOLE, offset, length),
                out: nothing_out,
                into: nothing_in,
            },
        }
    }
}

fn header(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut header = [0; 28];
    header[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&flags.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..28].copy_from_slice(&length.to_be_bytes());
    header
}

/// A connection, and the disk's size in bytes.
fn shake_hands(path: &Path) -> io::Result<(UnixStream, u64)> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(HANDSHAKE_PATIENCE))?;
    stream.set_write_timeout(Some(HANDSHAKE_PATIENCE))?;
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if u64_at(&greeting, 0) != INIT_MAGIC || u64_at(&greeting, 8) != OPTION_MAGIC {
        return Err(wrong("it isn't an NBD server"));
    }
    // GO with the default export, and no wish to be told more than must be.
    let mut hello = u32::from(HANDSHAKE_FLAGS).to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(OPTION_GO.to_be_bytes());
    hello.extend(6_u32.to_be_bytes());
    hello.extend([0; 6]);
    stream.write_all(&hello)?;
    let mut size_bytes = None;
    loop {
        let mut reply = [0; 20];
        stream.read_exact(&mut reply)?;
        let (kind, length) = (u32_at(&reply, 12), u32_at(&reply, 16));
        if u64_at(&reply, 0) != OPTION_REPLY_MAGIC || length > OPTION_BYTES_MAX {
            return Err(wrong("the server's answer to GO isn't understood"));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        match kind {
            OPTION_REPLY_ACK => break,
            OPTION_REPLY_INFO if data.len() >= 10 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                size_bytes = Some(u64_at(&data, 2));
            }
            kind if kind & OPTION_REPLY_ERROR != 0 => return Err(wrong("the server refused GO")),
            _ => {}
        }
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok((stream, size_bytes.ok_or_else(|| wrong("the server doesn't tell the export's size"))?))
}

fn write_all(stream: &mut UnixStream, header: &[u8], data: &[u8]) -> io::Result<()> {
    let slices = &mut [IoSlice::new(header), IoSlice::new(data)];
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0); // drops an empty one
    while !slices.is_empty() {
        match stream.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_be_bytes)
}

/// What a panic left is whole: no lock is held across code that can panic half way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
