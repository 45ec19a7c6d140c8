//! Clients that are broken or mean. After each of them the server must still serve others.
#![allow(clippy::unwrap_used, reason = "a test that finds something missing has failed")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent, MemoryDisk};
use ankole_blockdev::nbd::wire::{Command, Cookie, OPTION_MAGIC, RawRequest, option};
use ankole_blockdev::nbd::{Client, Limits};
use common::{MIB, Random, Served, Setup, local, seed};

const SIZE: u64 = 64 * MIB;

fn memory() -> MemoryDisk {
    MemoryDisk::new(SIZE)
}

/// Deadlines short enough to see them pass; nothing here measures them.
fn impatient() -> Setup {
    let limits = Limits {
        handshake: Duration::from_millis(200),
        stall: Duration::from_millis(200),
        ..Limits::default()
    };
    Setup { limits, ..Setup::default() }
}

fn connect(served: &Served) -> UnixStream {
    let socket = UnixStream::connect(served.socket()).unwrap();
    // So that a server that forgets a client fails the test and doesn't hang it.
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// In the transmission phase, with simple replies.
fn transmission(served: &Served) -> UnixStream {
    let mut socket = connect(served);
    socket.read_exact(&mut [0; 18]).unwrap();
    let mut hello = 3_u32.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(option::EXPORT_NAME.to_be_bytes());
    hello.extend(0_u32.to_be_bytes());
    socket.write_all(&hello).unwrap();
    socket.read_exact(&mut [0; 10]).unwrap();
    socket
}

fn request(command: Command, offset_bytes: u64, length_bytes: u32) -> [u8; RawRequest::BYTES] {
    let (flags, command, cookie) = (0, command.to_wire(), Cookie(7));
    RawRequest { flags, command, cookie, offset_bytes, length_bytes }.encode()
}

/// Waits until the server has closed the connection, however it did.
fn wait_until_closed(mut socket: UnixStream) {
    let mut sink = vec![0; 64 << 10];
    loop {
        match socket.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the server keeps the connection: {error}"),
        }
    }
}

/// A write, a flush and a read by an ordinary client.
fn assert_serves(path: &Path) {
    local(async {
        let client = Client::connect_unix(path, "disk").await.unwrap();
        let at = Extent { offset_bytes: 4096, length_bytes: 4096 };
        let data = Buffer::copy_of(&[9; 4096]);
        drop(client.write(at, data, Durability::Volatile).await.unwrap());
        client.flush().await.unwrap();
        let (result, data) = client.read(at, Buffer::zeroed(4096)).await;
        drop(result.unwrap());
        assert_eq!(data[..], [9; 4096]);
    });
}

#[test]
fn garbage_in_the_handshake_ends_that_connection_only() {
    let mut random = Random(seed());
    let served = Served::new(memory);
    for _ in 0..50 {
        let mut socket = connect(&served);
        let length = random.below(300) as usize + 20;
        let garbage = random.bytes(length);
        // The server may have closed before all was written.
        let _ = socket.write_all(&garbage);
        wait_until_closed(socket);
    }
    assert_serves(&served.socket());
}

#[test]
fn garbage_in_the_transmission_ends_that_connection_only() {
    let mut random = Random(seed());
    let served = Served::new(memory);
    for _ in 0..50 {
        let mut socket = transmission(&served);
        let _ = socket.write_all(&random.bytes(100));
        wait_until_closed(socket);
    }
    assert_serves(&served.socket());
}

/// A handshake that never ends would keep its place among the clients for ever.
#[test]
fn a_client_that_says_nothing_is_disconnected() {
    let served = Served::with(impatient(), memory);
    let socket = connect(&served);
    assert_serves(&served.socket());
    wait_until_closed(socket);
}

/// Half a header, then silence: nothing is owed to that client, and nobody else waits for it.
#[test]
fn half_a_request_is_given_up_after_a_while() {
    let served = Served::with(impatient(), memory);
    for part in [&request(Command::Flush, 0, 0)[..13], &request(Command::Write, 0, 8192)] {
        let mut socket = transmission(&served);
        socket.write_all(part).unwrap();
        assert_serves(&served.socket());
        wait_until_closed(socket);
    }
    // Between requests silence is allowed.
    let mut quiet = transmission(&served);
    std::thread::sleep(Duration::from_millis(600));
    quiet.write_all(&request(Command::Flush, 0, 0)).unwrap();
    let mut reply = [0; 16];
    quiet.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], [0; 4]);
}

/// A client that dies in the middle of its write must leave the old bytes, not half of the new.
#[test]
fn half_a_write_changes_nothing() {
    let served = Served::new(memory);
    let mut socket = transmission(&served);
    socket.write_all(&request(Command::Write, 0, 1 << 20)).unwrap();
    socket.write_all(&vec![1; 500_000]).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    wait_until_closed(socket);
    let mut reader = transmission(&served);
    reader.write_all(&request(Command::Read, 0, 1 << 20)).unwrap();
    let mut data = vec![0; 16 + (1 << 20)];
    reader.read_exact(&mut data).unwrap();
    assert!(data[16..].iter().all(|&byte| byte == 0));
}

/// Four gigabytes are announced. They are neither allocated nor believed, and the stream stays in
/// step for as long as the client keeps sending.
#[test]
fn an_oversized_write_is_skipped_and_refused() {
    let served = Served::new(memory);
    let mut socket = transmission(&served);
    socket.write_all(&request(Command::Write, 0, (32 << 20) + 512)).unwrap();
    socket.write_all(&vec![1; (32 << 20) + 512]).unwrap();
    let mut reply = [0; 16];
    socket.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], libc::EINVAL.to_be_bytes());
    assert_eq!(reply[8..16], 7_u64.to_be_bytes());
    socket.write_all(&request(Command::Flush, 0, 0)).unwrap();
    socket.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], [0; 4]);

    let before = resident_bytes();
    let mut liar = transmission(&served);
    liar.write_all(&request(Command::Write, 0, u32::MAX)).unwrap();
    liar.write_all(&vec![1; 1 << 20]).unwrap();
    assert_serves(&served.socket());
    assert!(resident_bytes() < before + (256 << 20), "four gigabytes were believed");
}

/// Resident memory of this process, which holds the server too.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Asks for far more than it reads. Its replies must not pile up, and it is given up in the end.
#[test]
fn a_client_that_stops_reading_is_bounded_and_then_disconnected() {
    let served = Served::with(impatient(), memory);
    let before = resident_bytes();
    let mut deaf = transmission(&served);
    deaf.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut asked = 0_u64;
    // 16 MiB each; the server stops to listen when its limit is reached.
    for _ in 0..10_000 {
        match deaf.write_all(&request(Command::Read, 0, 16 << 20)) {
            Ok(()) => asked += 16 << 20,
            Err(_) => break,
        }
    }
    assert!(asked > 1 << 30, "the test asked for too little to show anything");
    let grown = resident_bytes().saturating_sub(before);
    // The limit of one connection is 64 MiB.
    assert!(grown < 200 << 20, "{asked} bytes were asked for, {grown} were taken");
    assert_serves(&served.socket());
    // Reading slowly now would be moving on; so only look whether it gets closed.
    let deadline = Instant::now() + Duration::from_secs(60);
    while deaf.write_all(&[0]).err().is_none_or(|error| error.kind() != ErrorKind::BrokenPipe) {
        assert!(Instant::now() < deadline, "the server keeps a client that doesn't read");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// 64 clients that sent half of a write of 16 MiB took an engine to 1 GiB.
#[test]
fn half_sent_writes_take_what_all_clients_may_have_and_nothing_from_small_requests() {
    const LENGTH: u32 = 2 * MIB as u32;
    let limits = Limits {
        memory_bytes_own: 64 << 10,
        memory_bytes_shared: 4 * MIB,
        stall: Duration::from_secs(3600), // nobody is given up here
        ..Limits::default()
    };
    let served = Served::with(Setup { limits, ..Setup::default() }, memory);
    let half = vec![7; LENGTH as usize - 100_000];
    let mut sent_in_full = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let mut socket = transmission(&served);
        socket.write_all(&request(Command::Write, 0, LENGTH)).unwrap();
        socket.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut sent = 0;
        while sent < half.len()
            && let Ok(count) = socket.write(&half[sent..])
        {
            sent += count;
        }
        if sent == half.len() { &mut sent_in_full } else { &mut waiting }.push((socket, sent));
    }
    assert_eq!(sent_in_full.len(), 2, "those have all the memory that is shared");
    assert_serves(&served.socket());
    drop(sent_in_full);
    // Now there is memory for others.
    let (mut socket, sent) = waiting.swap_remove(0);
    drop(waiting);
    socket.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.write_all(&vec![7; LENGTH as usize - sent]).unwrap();
    socket.read_exact(&mut [0; 16]).unwrap();
}

/// Whoever can connect could otherwise lock out the engine's real client.
#[test]
fn a_thousand_idle_connections_do_not_keep_a_client_out() {
    let served = Served::new(memory);
    let mut working = transmission(&served);
    // This process holds both ends, so that a thousand of them need two thousand files.
    let crowd: Vec<UnixStream> =
        (0..1000).map_while(|_| UnixStream::connect(served.socket()).ok()).collect();
    assert!(crowd.len() >= 300, "only {} connections could be made", crowd.len());
    assert_serves(&served.socket());
    working.write_all(&request(Command::Flush, 0, 0)).unwrap();
    let mut reply = [0; 16];
    working.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], [0; 4]);
}

/// Room for a newcomer comes from those that have nothing to lose, and the limit holds.
#[test]
fn the_oldest_unfinished_handshake_makes_room() {
    let limits =
        Limits { connections_max: 2, handshake: Duration::from_secs(3600), ..Limits::default() };
    let served = Served::with(Setup { limits, ..Setup::default() }, memory);
    let established = transmission(&served);
    let idle = connect(&served);
    assert_serves(&served.socket());
    wait_until_closed(idle);
    drop(established);
}

/// Clients that hold their place honestly are served; one more is turned away, not queued for ever.
#[test]
fn one_client_too_many_is_turned_away_and_comes_in_when_another_leaves() {
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let served = Served::with(Setup { limits, ..Setup::default() }, memory);
    let first = transmission(&served);
    let second = transmission(&served);
    wait_until_closed(connect(&served));
    drop((first, second));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut socket = connect(&served);
        match socket.read_exact(&mut [0; 18]) {
            Ok(()) => break,
            Err(_) => assert!(Instant::now() < deadline, "places aren't given back"),
        }
    }
}
