//! The server with its sockets, over a real directory; without root where a test doesn't say otherwise.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod client;

use ankole_share::ops::Export;
use ankole_share::policy::Policy;
use ankole_share::server::Server;
use ankole_share::tree::local::{LocalTree, Options};
use ankole_share::tree::{Name, Tree};
use ankole_share::wire::attributes::AttributeSet;
use ankole_share::wire::record::{RECORD_BYTES_MAX, whole};
use ankole_share::wire::rpc::Caller;
use ankole_share::wire::status::Status;
use client::{Carrier, Client, Create, OK, Ops};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn serve(directory: &TempDir, epoch: u32) -> Server {
    serve_with(directory, epoch, |export| export)
}

fn serve_with(directory: &TempDir, epoch: u32, change: impl FnOnce(Export) -> Export) -> Server {
    let tree = LocalTree::open(directory.path(), Options::default()).unwrap();
    let lease = Duration::from_secs(20);
    let export = Export::new(Box::new(tree), Instant::now(), epoch, lease);
    Server::start(TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(change(export))).unwrap()
}

struct Socket(TcpStream);

impl Socket {
    fn connect(server: &Server) -> Self {
        Self(TcpStream::connect(server.local_addr().unwrap()).unwrap())
    }

    fn send(&mut self, message: &[u8]) {
        self.0.write_all(&whole(message.len())).unwrap();
        self.0.write_all(message).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut mark = [0; 4];
        self.0.read_exact(&mut mark).unwrap();
        let mut reply = vec![0; (u32::from_be_bytes(mark) & 0x7fff_ffff) as usize];
        self.0.read_exact(&mut reply).unwrap();
        reply
    }

    /// The server has ended the connection.
    fn is_ended(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}

impl Carrier for Socket {
    fn carry(&mut self, message: &[u8]) -> Vec<u8> {
        self.send(message);
        self.receive()
    }
}

fn ops() -> Ops {
    Ops::default()
}

#[test]
fn a_file_is_written_through_a_socket_and_is_there() {
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    let mut client = Client::new(Socket::connect(&server), "a");
    let (file, open) = client.open("file", 3, 0);
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    client.call(ops().put(&file).write(open, 0, 2, &data)).ok(22).ok(38);
    assert!(std::fs::read(directory.path().join("file")).unwrap() == data);
    let mut read = client.call(ops().put(&file).read(open, 7, 1 << 20));
    read.ok(22).ok(25).u32();
    assert!(read.opaque() == data[7..]);
}

/// The slots of a session are there to be used at once, over any of its connections.
#[test]
fn a_session_is_carried_by_any_connection() {
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    let mut client = Client::new(Socket::connect(&server), "a");
    client.carrier = Socket::connect(&server);
    assert_eq!(client.call(ops().put_root()).status, OK);
}

#[test]
fn a_message_that_is_too_long_or_no_call_ends_its_connection_and_no_other() {
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    let mut good = Client::new(Socket::connect(&server), "a");
    let mut long = Socket::connect(&server);
    long.0.write_all(&whole(RECORD_BYTES_MAX + 1)).unwrap();
    assert!(long.is_ended());
    let mut nonsense = Socket::connect(&server);
    nonsense.send(b"hello!!!");
    assert!(nonsense.is_ended());
    let mut pieces = Socket::connect(&server);
    (0..2000).for_each(|_| drop(pieces.0.write_all(&[0, 0, 0, 1, 9])));
    assert!(pieces.is_ended());
    assert_eq!(good.call(ops().put_root()).status, OK);
}

/// More connections that each begin a large message, and stop, than there are large buffers: others were
/// kept from large ones until those were given up, after a minute.
#[test]
fn who_stops_in_the_middle_of_a_message_keeps_nobody_from_anything() {
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    let mut client = Client::new(Socket::connect(&server), "a");
    let stuck: Vec<_> = [64, 40_000]
        .repeat(40)
        .into_iter()
        .map(|sent_bytes| {
            let mut socket = Socket::connect(&server);
            socket.0.write_all(&whole(RECORD_BYTES_MAX)).unwrap();
            socket.0.write_all(&vec![0; sent_bytes]).unwrap();
            socket
        })
        .collect();
    let (file, open) = client.open("file", 3, 0);
    client.call(ops().put(&file).write(open, 0, 0, b"small")).ok(22).ok(38);
    let large = vec![7; 1 << 20];
    client.call(ops().put(&file).write(open, 0, 0, &large)).ok(22).ok(38);
    let mut read = client.call(ops().put(&file).read(open, 0, 1 << 20));
    read.ok(22).ok(25).u32();
    assert!(read.opaque() == large);
    for socket in &stuck {
        socket.0.set_nonblocking(true).unwrap();
        let read = (&socket.0).read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(read, Err(ErrorKind::WouldBlock), "it was in nobody's way");
    }
}

#[test]
fn a_client_of_a_network_that_is_not_allowed_is_refused() {
    let directory = TempDir::new().unwrap();
    let serve_for = |network: &str| {
        let policy = Policy { networks: vec![network.parse().unwrap()], ..Policy::default() };
        serve_with(&directory, 1, |export| export.with_policy(policy))
    };
    let server = serve_for("127.0.0.2");
    assert!(Socket::connect(&server).is_ended());
    drop(server);
    let server = serve_for("127.0.0.0/8");
    assert_eq!(Client::new(Socket::connect(&server), "a").call(ops().put_root()).status, OK);
}

/// A reply that is lost makes the client ask again, and a new process can't know that it was done.
#[test]
fn a_request_that_was_begun_is_answered_when_the_server_stops() {
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    Client::new(Socket::connect(&server), "before").open("file", 3, 3);
    drop(server);
    let server = serve_with(&directory, 2, |export| export.with_patience(Duration::from_secs(1)));
    let mut client = Client::new(Socket::connect(&server), "a");
    client.sequence += 1;
    let open = ops().put_root().open("o", 1, 0, Create::No, "file");
    let message = client.sequenced(open);
    client.carrier.send(&message);
    while server.export().waiting() == 0 {
        std::thread::yield_now();
    }
    drop(server);
    let status = &client.carrier.receive()[24..28];
    assert_eq!(status, Status::Grace.number().to_be_bytes());
    assert!(client.carrier.is_ended());
}

/// A client that asks and asks and takes no reply holds its own threads, and no more.
#[test]
fn who_reads_no_replies_keeps_nobody_else_waiting() {
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    let mut good = Client::new(Socket::connect(&server), "a");
    let mut flood = Socket::connect(&server);
    flood.0.set_nonblocking(true).unwrap();
    let message = good.sequenced(ops().put_root());
    let one: Vec<u8> = [&whole(message.len())[..], &message].concat();
    let many = one.repeat(1000);
    while flood.0.write(&many).is_ok() {}
    assert_eq!(good.call(ops().put_root()).status, OK);
}

/// A call to a client goes over its connection, between replies; its reply comes back among requests.
#[test]
fn a_client_is_called_on_its_connection() {
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    let mut holder = Client::new(Socket::connect(&server), "holder");
    let (file, open) = holder.open("file", 3, 0);
    let mut locks = holder.call(ops().put(&file).lock(open, "l", true, 0, 9));
    let locks = locks.ok(22).ok(12).stateid();
    let mut waiter = Client::new(Socket::connect(&server), "waiter");
    waiter.call(ops().callback_control(7)).ok(40);
    waiter.bare(ops().bind(waiter.session, 3)).ok(41);
    let (_, open) = waiter.open("file", 3, 0);
    let wait = || ops().put(&file).wait_to_lock(open, "l", 0, 9);
    assert_eq!(waiter.call(wait()).status, Status::Denied.number());
    holder.call(ops().put(&file).unlock(locks, 0, 9)).ok(22).ok(14);
    let call = waiter.carrier.receive();
    assert_eq!(call[4..16], [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 7], "a call of its program");
    let answer = [1, 0, 0, 0, 0, 0, 0, 1, 11, 0].map(u32::to_be_bytes).concat();
    waiter.carrier.send(&[&call[..4], &answer[..]].concat());
    waiter.call(wait()).ok(22).ok(12);
    waiter.carrier.send(&[&call[..4], &[0, 0, 0, 1]].concat());
    assert!(waiter.carrier.is_ended(), "that was no reply");
}

#[test]
fn the_shares_own_directory_can_not_be_seen_or_touched() {
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    let mut client = Client::new(Socket::connect(&server), "a");
    let hidden = ".ankole-share";
    assert!(directory.path().join(hidden).is_dir());
    let mut status = |ops| client.call(ops).status;
    assert_eq!(status(ops().put_root().lookup(hidden)), Status::NoEnt.number());
    assert_eq!(status(ops().put_root().remove(hidden)), Status::NoEnt.number());
    assert_eq!(status(ops().put_root().make_directory(hidden)), Status::Access.number());
    let open = ops().put_root().open("o", 3, 0, Create::Guarded, hidden);
    assert_eq!(status(open), Status::Access.number());
    assert_eq!(status(ops().put_root().make_directory("d")), OK);
    let over = ops().put_root().save().rename("d", hidden);
    assert_eq!(status(over), Status::Access.number());
    let mut list = client.call(ops().put_root().read_directory(0, 4096));
    list.ok(24).ok(26).u64();
    assert_eq!((list.u32(), list.u64() > 2, list.opaque()), (1, true, b"d".to_vec()));
}

#[test]
fn a_file_that_is_renamed_to_its_other_name_stays_as_it_is() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("one"), "x").unwrap();
    std::fs::hard_link(directory.path().join("one"), directory.path().join("two")).unwrap();
    let tree = LocalTree::open(directory.path(), Options::default()).unwrap();
    let name = |bytes| (tree.root(), Name::new(bytes).unwrap());
    let (from, to) = tree.rename(&Caller::ROOT, name(b"one"), name(b"two")).unwrap();
    assert_eq!((from.before, to.before), (from.after, to.after));
    tree.rename(&Caller::ROOT, name(b"one"), name(b"three")).unwrap();
    assert!(directory.path().join("three").exists());
}

/// Without root a file is known by what was looked up: its last name but one must not take that away.
#[test]
fn a_file_that_loses_one_of_its_names_is_still_known() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("one"), "x").unwrap();
    let names = ["two", "three"].map(|name| directory.path().join(name));
    names.iter().for_each(|name| std::fs::hard_link(directory.path().join("one"), name).unwrap());
    std::fs::write(directory.path().join("other"), "y").unwrap();
    let tree = LocalTree::open(directory.path(), Options::default()).unwrap();
    let (root, caller) = (tree.root(), Caller::ROOT);
    let name = |bytes| Name::new(bytes).unwrap();
    let file = tree.lookup(&caller, root, name(b"three")).unwrap();
    let before = tree.attributes(file).unwrap();
    tree.remove(&caller, root, name(b"one")).unwrap();
    tree.rename(&caller, (root, name(b"other")), (root, name(b"two"))).unwrap();
    let after = tree.attributes(file).unwrap();
    assert_eq!((before.links, after.links), (3, 1));
    assert!(after.change > before.change);
    tree.remove(&caller, root, name(b"three")).unwrap();
    assert_eq!(tree.attributes(file).unwrap_err(), Status::Stale);
}

/// Symlinks are for clients to follow: here one that leads out of the tree is but a file.
#[test]
fn a_symlink_out_of_the_tree_leads_nowhere() {
    let (directory, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(outside.path(), directory.path().join("out")).unwrap();
    let link = outside.path().join("secret");
    std::os::unix::fs::symlink(link, directory.path().join("file")).unwrap();
    let server = serve(&directory, 1);
    let mut client = Client::new(Socket::connect(&server), "a");
    let through = client.call(ops().put_root().lookup("out").lookup("secret"));
    assert_eq!(through.status, Status::Symlink.number());
    let open = client.call(ops().put_root().open("o", 1, 0, Create::No, "file"));
    assert_eq!(open.status, Status::Symlink.number());
    let create = Create::Unchecked { truncate: true };
    let open = client.call(ops().put_root().open("o", 2, 0, create, "file"));
    assert_eq!(open.status, Status::Symlink.number());
}

#[test]
fn a_symlink_has_no_mode_of_its_own() {
    let directory = TempDir::new().unwrap();
    std::os::unix::fs::symlink("target", directory.path().join("link")).unwrap();
    let server = serve(&directory, 1);
    let mut client = Client::new(Socket::connect(&server), "a");
    let set_mode = client.call(ops().put_root().lookup("link").op(34, |e| {
        e.fixed(&[0; 16]);
        AttributeSet::of(&[33]).encode(e);
        e.opaque(&[0, 0, 1, 0xff]);
    }));
    let kernel_does_it = set_mode.status == OK; // before 6.6
    assert!(kernel_does_it || set_mode.status == Status::AttrNotSupp.number());
}

/// A FIFO without a reader would hold a thread for ever.
#[test]
fn a_fifo_is_never_opened() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let server = serve(&directory, 1);
    let mut client = Client::new(Socket::connect(&server), "a");
    let open = client.call(ops().put_root().open("o", 1, 0, Create::No, "fifo"));
    assert_eq!(open.status, Status::WrongType.number());
}

/// Two changes within one tick of the kernel's clock must not look like one: a client would keep what it has.
#[test]
fn each_change_has_another_number() {
    let directory = TempDir::new().unwrap();
    let tree = LocalTree::open(directory.path(), Options::default()).unwrap();
    let (root, caller) = (tree.root(), Caller::ROOT);
    let name = Name::new(b"file").unwrap();
    let mut last = tree.attributes(root).unwrap().change;
    let kind = ankole_share::tree::NewFile::Regular;
    for _ in 0..100 {
        let (file, made) = tree.create(&caller, root, name, kind, 0o600).unwrap();
        assert_eq!(made.before, last);
        let open = tree.open(file).unwrap();
        let before = tree.attributes(file).unwrap().change;
        let stability = ankole_share::wire::types::Stability::Unstable;
        open.write(&caller, 0, b"x", stability).unwrap();
        assert_ne!(tree.attributes(file).unwrap().change, before);
        let gone = tree.remove(&caller, root, name).unwrap();
        assert_eq!(gone.before, made.after);
        assert!(gone.after > gone.before);
        last = gone.after;
    }
}

/// Needs CAP_DAC_READ_SEARCH: the kernel opens by handle for nobody else.
#[test]
fn requires_root_handles_and_claims_are_good_after_a_restart() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: not root");
        return;
    }
    let directory = TempDir::new().unwrap();
    let server = serve(&directory, 1);
    let mut client = Client::new(Socket::connect(&server), "a");
    let (file, open) = client.open("file", 3, 0);
    client.call(ops().put(&file).lock(open, "l", true, 0, 9)).ok(22).ok(12);
    let verifier = |server: &Server, name| {
        let mut client = Client::before_claims(Socket::connect(server), name);
        let open = client.call(ops().put(&file).reclaim("owner", 3)).ok(22).ok(18).stateid();
        client.call(ops().put(&file).lock_or_claim(open, "l", true, 0, 9, true)).ok(22).ok(12);
        client.call(ops().reclaim_complete()).ok(58);
        client.call(ops().put(&file).commit()).ok(22).ok(5).u64()
    };
    drop(server);
    std::fs::rename(directory.path().join("file"), directory.path().join("moved")).unwrap();
    let server = serve(&directory, 2);
    let first = verifier(&server, "a");
    drop(server);
    let second = verifier(&serve(&directory, 3), "a");
    assert_ne!(first, second, "what wasn't committed has to be written again");
}
