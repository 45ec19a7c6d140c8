//! Our client against our server, on one thread: what tools don't show.
#![allow(clippy::unwrap_used, reason = "a test that finds something missing has failed")]

mod common;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ankole_blockdev::disk::{
    Allocation, Buffer, Counting, Disk, Durability, Extent, FaultPlan, Faulty, Hold, MemoryDisk,
    PerKind, RequestKind, Slow,
};
use ankole_blockdev::nbd::wire::Command;
use ankole_blockdev::nbd::{
    Client, ConnectError, Export, Limits, ListenError, Listener, TcpExposure, serve,
};
use common::{MIB, Random, local, seed};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// A server in the same thread as the test.
struct Here {
    folder: TempDir,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Here {
    async fn serve<D: Disk + 'static>(disk: D) -> Self {
        Self::serve_with(disk, Limits::default()).await
    }

    async fn serve_with<D: Disk + 'static>(disk: D, limits: Limits) -> Self {
        Self::export(Export::new("disk", Rc::new(disk)), limits).await
    }

    async fn export<D: Disk + 'static>(export: Export<D>, limits: Limits) -> Self {
        let folder = TempDir::new().unwrap();
        let listener = Listener::bind_unix(folder.path().join("nbd.sock")).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::task::spawn_local(serve(listener, export, limits, async {
            drop(stopped.await);
        }));
        Self { folder, stop, task }
    }

    async fn client(&self) -> Client {
        Client::connect_unix(&self.folder.path().join("nbd.sock"), "disk").await.unwrap()
    }
}

fn extent(offset_bytes: u64, length_bytes: u64) -> Extent {
    Extent { offset_bytes, length_bytes }
}

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().expect("this request fails").raw_os_error().expect("with an errno")
}

/// Waits for something that must come; fails the test rather than hang.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let patience = Duration::from_secs(60);
    assert!(tokio::time::timeout(patience, waiting).await.is_ok(), "never came: {what}");
}

async fn read(disk: &impl Disk, at: Extent) -> io::Result<Vec<u8>> {
    let (result, data) = disk.read(at, Buffer::zeroed(at.length_bytes as usize)).await;
    result.map(|_| data.to_vec())
}

async fn write(disk: &impl Disk, at: Extent, byte: u8) -> io::Result<Hold> {
    let data = Buffer::copy_of(&vec![byte; at.length_bytes as usize]);
    disk.write(at, data, Durability::Volatile).await
}

/// Whatever is asked in whatever order, the disk reads like a flat array, and what the map calls
/// zero is zero.
#[test]
fn a_served_disk_reads_like_a_flat_array() {
    const SIZE: u64 = 2 * MIB;
    let mut random = Random(seed());
    local(async move {
        let here = Here::serve(MemoryDisk::new(SIZE)).await;
        let client = here.client().await;
        let mut model = vec![0_u8; SIZE as usize];
        for _ in 0..2000 {
            let offset = random.below(SIZE / 512) * 512;
            let length = (random.below(64) + 1) * 512;
            let at = extent(offset, length.min(SIZE - offset));
            let range = at.offset_bytes as usize..at.end_bytes() as usize;
            match random.below(5) {
                0 | 1 => {
                    let data = random.bytes(range.len());
                    model[range].copy_from_slice(&data);
                    let buffer = Buffer::copy_of(&data);
                    drop(client.write(at, buffer, Durability::Volatile).await.unwrap());
                }
                2 => {
                    drop(client.write_zeroes(at, Durability::ForcedUnitAccess).await.unwrap());
                    model[range].fill(0);
                }
                3 => {
                    drop(client.trim(at).await.unwrap());
                    let start = range.start.next_multiple_of(4096);
                    let end = range.end / 4096 * 4096;
                    model[start.min(end)..end].fill(0);
                }
                _ => assert_eq!(read(&client, at).await.unwrap(), model[range]),
            }
        }
        assert_eq!(read(&client, extent(0, SIZE)).await.unwrap(), model);
        let mut end = 0;
        for (run, allocation) in client.extents(extent(0, SIZE)).await.unwrap() {
            assert_eq!(run.offset_bytes, end);
            end = run.end_bytes();
            let bytes = &model[run.offset_bytes as usize..end as usize];
            assert!(allocation == Allocation::Data || bytes.iter().all(|&byte| byte == 0));
        }
        assert_eq!(end, SIZE);
    });
}

/// Requests overtake each other: a slow one doesn't hold up those behind it.
#[test]
fn answers_come_in_the_order_in_which_the_disk_is_done() {
    local(async {
        let delays = PerKind::default().with(RequestKind::Write, Duration::from_millis(50));
        let here = Here::serve(Slow::new(MemoryDisk::new(MIB), delays)).await;
        let client = here.client().await;
        let order = RefCell::new(Vec::new());
        tokio::join!(
            async {
                drop(write(&client, extent(0, 4096), 1).await.unwrap());
                order.borrow_mut().push("write");
            },
            async {
                read(&client, extent(8192, 4096)).await.unwrap();
                order.borrow_mut().push("read");
            }
        );
        assert_eq!(order.into_inner(), ["read", "write"]);
    });
}

/// An error belongs to its request alone, and arrives as the number that the disk gave.
#[test]
fn errors_reach_the_request_that_failed_and_no_other() {
    local(async {
        let plan = FaultPlan::default()
            .fail_nth(RequestKind::Flush, 3, libc::EIO)
            .fail_touching(RequestKind::Write, extent(8192, 512), libc::ENOSPC)
            .fail_touching(RequestKind::Read, extent(8192, 512), libc::EIO)
            .fail_every(RequestKind::Trim, libc::EOPNOTSUPP)
            .fail_every(RequestKind::Extents, libc::EIO);
        let here = Here::serve(Faulty::new(MemoryDisk::new(MIB), plan)).await;
        let client = here.client().await;
        client.flush().await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(errno(client.flush().await), libc::EIO);
        client.flush().await.unwrap();
        drop(write(&client, extent(0, 8192), 1).await.unwrap());
        assert_eq!(errno(write(&client, extent(4096, 8192), 1).await), libc::ENOSPC);
        assert_eq!(errno(read(&client, extent(0, 16384)).await), libc::EIO);
        assert_eq!(read(&client, extent(0, 8192)).await.unwrap(), [1; 8192]);
        assert_eq!(errno(client.trim(extent(0, 4096)).await), libc::EINVAL);
        assert_eq!(errno(client.extents(extent(0, 4096)).await), libc::EIO);
    });
}

/// FUA that gets lost on the way is data lost at a power cut, and nothing else would show it.
#[test]
fn forced_writes_and_trims_are_forced_on_the_disk() {
    local(async {
        let disk = Counting::new(MemoryDisk::new(MIB));
        let counters = disk.counters();
        let here = Here::serve(disk).await;
        let client = here.client().await;
        let fua = Durability::ForcedUnitAccess;
        drop(client.write(extent(0, 4096), Buffer::zeroed(4096), fua).await.unwrap());
        assert_eq!(counters.forced_unit_access(), 1);
        drop(client.write_zeroes(extent(0, 4096), fua).await.unwrap());
        assert_eq!(counters.forced_unit_access(), 2);
        drop(write(&client, extent(0, 4096), 1).await.unwrap());
        assert_eq!(counters.forced_unit_access(), 2);
        assert_eq!(counters.of(RequestKind::Write).requests, 2);
        assert_eq!(counters.of(RequestKind::Write).bytes, 8192);
        assert_eq!(counters.of(RequestKind::Flush).requests, 0);
    });
}

/// Requests that are out of range or out of line never reach a disk, which doesn't check again.
#[test]
fn a_disk_never_sees_a_request_that_is_not_within_it() {
    local(async {
        let disk = Counting::new(MemoryDisk::new(MIB));
        let counters = disk.counters();
        let here = Here::serve(disk).await;
        let client = here.client().await;
        for at in [extent(MIB, 512), extent(MIB - 512, 1024), extent(u64::MAX - 511, 1024)] {
            let data = Buffer::zeroed(at.length_bytes as usize);
            let written = client.write(at, data, Durability::Volatile).await;
            assert_eq!(errno(written), libc::ENOSPC, "write {at:?}");
            assert_eq!(errno(read(&client, at).await), libc::EINVAL, "read {at:?}");
        }
        for at in [extent(1, 512), extent(0, 511), extent(0, 0)] {
            assert_eq!(errno(write(&client, at, 1).await), libc::EINVAL, "write {at:?}");
            assert_eq!(errno(read(&client, at).await), libc::EINVAL, "read {at:?}");
            assert_eq!(errno(client.trim(at).await), libc::EINVAL, "trim {at:?}");
        }
        assert_eq!(errno(read(&client, extent(0, (32 << 20) + 512)).await), libc::EOVERFLOW);
        let refused = write(&client, extent(0, (32 << 20) + 512), 1).await;
        assert_eq!(errno(refused), libc::EINVAL);
        for kind in RequestKind::ALL {
            assert_eq!(counters.of(kind).requests, 0, "{kind:?}");
        }
        // After all those refusals the stream is still in step.
        drop(write(&client, extent(0, 4096), 7).await.unwrap());
        assert_eq!(read(&client, extent(0, 4096)).await.unwrap(), [7; 4096]);
    });
}

/// The flag alone protects nothing: a client is free not to look at it.
#[test]
fn a_read_only_export_refuses_every_kind_of_write() {
    local(async {
        let disk = Rc::new(Counting::new(MemoryDisk::new(MIB)));
        let counters = disk.counters();
        let export = Export { read_only: true, ..Export::new("disk", disk) };
        let here = Here::export(export, Limits::default()).await;
        let client = here.client().await;
        assert!(client.is_read_only());
        let path = here.folder.path().join("nbd.sock");
        let mut socket = by_hand::transmission(&path).await;
        for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
            let answer = by_hand::ask(&mut socket, command, 0, 512, &[1; 512]).await;
            assert_eq!(answer, libc::EPERM as u32, "{command:?}");
        }
        assert_eq!(read(&client, extent(0, 512)).await.unwrap(), [0; 512]);
        for kind in [RequestKind::Write, RequestKind::Trim, RequestKind::WriteZeroes] {
            assert_eq!(counters.of(kind).requests, 0);
        }
    });
}

/// A disk that notes when its hold is dropped.
struct Holding {
    inner: MemoryDisk,
    held: Rc<Cell<usize>>,
}

struct Held(Rc<Cell<usize>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Disk for Holding {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    async fn read(&self, at: Extent, into: Buffer) -> (io::Result<Hold>, Buffer) {
        let (result, data) = self.inner.read(at, into).await;
        self.held.set(self.held.get() + 1);
        (result.map(|_| Hold::until_dropped(Held(self.held.clone()))), data)
    }
    async fn write(&self, at: Extent, from: Buffer, how: Durability) -> io::Result<Hold> {
        self.inner.write(at, from, how).await
    }
    async fn flush(&self) -> io::Result<()> {
        self.inner.flush().await
    }
    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        self.inner.trim(at).await
    }
    async fn write_zeroes(&self, at: Extent, how: Durability) -> io::Result<Hold> {
        self.inner.write_zeroes(at, how).await
    }
    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        self.inner.extents(at).await
    }
    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        self.inner.resize(size_bytes).await
    }
}

/// Let go too early, a newer write could pass a reply that the client hasn't got; kept for ever,
/// the range would be locked for ever.
#[test]
fn a_range_is_held_until_its_reply_is_written_and_no_longer() {
    use std::io::Write;
    local(async {
        let held = Rc::new(Cell::new(0));
        let disk = Holding { inner: MemoryDisk::new(64 * MIB), held: held.clone() };
        let here = Here::serve(disk).await;
        let client = here.client().await;
        read(&client, extent(0, 4096)).await.unwrap();
        assert_eq!(held.get(), 0, "the reply has arrived");

        // A client that asks and doesn't read: the socket fills, and the rest is held.
        let mut deaf = by_hand::transmission(&here.folder.path().join("nbd.sock")).await;
        for cookie in 0..4 {
            deaf.write_all(&by_hand::read_request(cookie, 0, 4 << 20)).unwrap();
        }
        until("replies that nobody reads hold their range", || held.get() > 0).await;
        read(&client, extent(0, 4096)).await.unwrap();
        assert!(held.get() > 0, "unread replies keep their range");
        drop(deaf);
        until("the client is gone, so nothing is held for it", || held.get() == 0).await;
    });
}

/// Bytes of a client, written by hand.
mod by_hand {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use ankole_blockdev::nbd::wire::{Command, Cookie, OPTION_MAGIC, RawRequest, option};

    /// A blocking socket in the transmission phase, without structured replies.
    pub(super) async fn transmission(path: &Path) -> UnixStream {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut socket = UnixStream::connect(path).unwrap();
            socket.read_exact(&mut [0; 18]).unwrap();
            socket.write_all(&3_u32.to_be_bytes()).unwrap();
            socket.write_all(&OPTION_MAGIC.to_be_bytes()).unwrap();
            socket.write_all(&option::EXPORT_NAME.to_be_bytes()).unwrap();
            socket.write_all(&0_u32.to_be_bytes()).unwrap();
            socket.read_exact(&mut [0; 10]).unwrap();
            socket
        })
        .await
        .unwrap()
    }

    /// Sends one request, with `data` if it is a write, and returns the error of the reply.
    pub(super) async fn ask(
        socket: &mut UnixStream,
        command: Command,
        offset_bytes: u64,
        length_bytes: u32,
        data: &[u8],
    ) -> u32 {
        let (flags, cookie) = (0, Cookie(1));
        let number = command.to_wire();
        let raw = RawRequest { flags, command: number, cookie, offset_bytes, length_bytes };
        let mut message = raw.encode().to_vec();
        if command == Command::Write {
            message.extend(data);
        }
        let mut socket = socket.try_clone().unwrap();
        let reply = tokio::task::spawn_blocking(move || {
            socket.write_all(&message).unwrap();
            let mut reply = [0; 16];
            socket.read_exact(&mut reply).unwrap();
            reply
        });
        u32::from_be_bytes(reply.await.unwrap()[4..8].try_into().unwrap())
    }

    pub(super) fn read_request(cookie: u64, offset_bytes: u64, length_bytes: u32) -> [u8; 28] {
        let command = Command::Read.to_wire();
        RawRequest { flags: 0, command, cookie: Cookie(cookie), offset_bytes, length_bytes }
            .encode()
    }
}

/// The caller has to tell "the server has gone, connect again" from "the disk failed".
#[test]
fn a_dead_server_is_told_from_a_failed_disk_and_the_client_can_come_back() {
    local(async {
        let delays = PerKind::default().with(RequestKind::Flush, Duration::from_secs(3600));
        let limits = Limits { drain: Duration::from_millis(10), ..Limits::default() };
        let here = Here::serve_with(Slow::new(MemoryDisk::new(MIB), delays), limits).await;
        let path = here.folder.path().join("nbd.sock");
        let client = here.client().await;
        let flush = client.flush();
        let death = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            here.stop.send(()).unwrap();
            here.task.await.unwrap();
        };
        let (flushed, ()) = tokio::join!(flush, death);
        assert_eq!(errno(flushed), libc::ESHUTDOWN);
        assert_eq!(errno(read(&client, extent(0, 512)).await), libc::ESHUTDOWN);
        let refused = Client::connect_unix(&path, "disk").await;
        assert!(matches!(refused, Err(ConnectError::Connect { .. })));

        let listener = Listener::bind_unix(&path).await.unwrap();
        let disk = Rc::new(MemoryDisk::new(MIB));
        let export = Export::new("disk", disk);
        tokio::task::spawn_local(serve(
            listener,
            export,
            Limits::default(),
            std::future::pending(),
        ));
        let client = Client::connect_unix(&path, "disk").await.unwrap();
        client.flush().await.unwrap();
    });
}

/// A planned stop must not turn requests that the disk is working on into errors.
#[test]
fn a_shutdown_answers_what_was_begun() {
    local(async {
        let delays = PerKind::default().with(RequestKind::Flush, Duration::from_millis(50));
        let here = Here::serve(Slow::new(MemoryDisk::new(MIB), delays)).await;
        let path = here.folder.path().join("nbd.sock");
        let client = here.client().await;
        let stop = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            here.stop.send(()).unwrap();
            here.task.await.unwrap();
        };
        let (flushed, ()) = tokio::join!(client.flush(), stop);
        flushed.unwrap();
        assert!(!path.exists(), "the socket file is removed");
    });
}

/// A second server on the path of a living one would take its clients away.
#[test]
fn a_live_socket_is_left_alone_and_a_dead_one_replaced() {
    local(async {
        let here = Here::serve(MemoryDisk::new(MIB)).await;
        let path = here.folder.path().join("nbd.sock");
        let Err(error) = Listener::bind_unix(&path).await else { panic!("bound twice") };
        assert!(matches!(error, ListenError::PathInUse { .. }));
        assert!(error.to_string().contains("nbd.sock"));
        here.client().await.flush().await.unwrap();

        let stale = here.folder.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        assert!(stale.exists());
        Listener::bind_unix(&stale).await.unwrap();

        let file = here.folder.path().join("precious");
        std::fs::write(&file, "data").unwrap();
        let refused = Listener::bind_unix(&file).await;
        assert!(matches!(refused, Err(ListenError::NotASocket { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    });
}

/// Without TLS, a disk on a reachable address is everybody's disk.
#[test]
fn only_loopback_addresses_are_served_unless_asked_otherwise() {
    local(async {
        let anywhere = "0.0.0.0:0".parse().unwrap();
        let refused = Listener::bind_tcp(anywhere, TcpExposure::LoopbackOnly).await;
        assert!(matches!(refused, Err(ListenError::NotLoopback { .. })));
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let Err(error) = Listener::bind_tcp(address, TcpExposure::LoopbackOnly).await else {
            panic!("bound twice")
        };
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    });
}

/// The wrong name must fail with the server's words, not hang or serve another disk.
#[test]
fn an_unknown_export_is_refused_by_name() {
    local(async {
        let here = Here::serve(MemoryDisk::new(MIB)).await;
        let path = here.folder.path().join("nbd.sock");
        match Client::connect_unix(&path, "other").await {
            Err(error @ ConnectError::Refused { .. }) => {
                assert!(error.to_string().contains("\"other\""), "{error}");
            }
            _ => panic!("an export was found that isn't there"),
        }
        Client::connect_unix(&path, "").await.unwrap();
    });
}

/// A caller that gives up in the middle of a send leaves half a request in the stream. What comes
/// next must fail, and not be taken for the rest of that request's data.
#[test]
fn a_write_given_up_half_sent_breaks_the_connection_and_not_the_data() {
    local(async {
        let delays = PerKind::all(Duration::from_millis(300));
        let limits = Limits { requests_max: 1, ..Limits::default() };
        let here = Here::serve_with(Slow::new(MemoryDisk::new(64 * MIB), delays), limits).await;
        let client = here.client().await;
        let flush = client.flush();
        // The server takes one request at a time, so most of this one stays unsent.
        let given_up = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let patience = Duration::from_millis(50);
            let write = write(&client, extent(0, 16 * MIB), 1);
            assert!(tokio::time::timeout(patience, write).await.is_err(), "sent at once");
        };
        let (flushed, ()) = tokio::join!(flush, given_up);
        assert_eq!(errno(flushed), libc::ESHUTDOWN);
        assert_eq!(errno(write(&client, extent(0, 512), 2).await), libc::ESHUTDOWN);
        drop(client);
        let client = here.client().await;
        assert_eq!(read(&client, extent(0, 512)).await.unwrap(), [0; 512]);
    });
}
