//! What minor version 2 added, on a tree in memory and on a directory of this machine.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod client;
mod world;

use ankole_share::wire::status::Status;
use ankole_share::wire::types::StateId;
use client::{Carrier, Client, OK, Ops, Reply};
use tempfile::TempDir;
use world::World;

const READ: u32 = 1;
const BOTH: u32 = 3;
/// A multiple of all blocks of file systems that are met.
const BLOCK: u64 = 64 * 1024;
const XATTR_SUPPORT: u32 = 82;

type Carried = Box<dyn FnMut(&[u8]) -> Vec<u8>>;

fn ops() -> Ops {
    Ops::default()
}

/// The story on both trees, with a client that speaks 4.2.
fn on_both(story: impl Fn(&World, &mut Client<Carried>)) {
    let directory = TempDir::new().unwrap();
    for world in [World::new(), World::local(directory.path())] {
        let carrier: Carried = Box::new(world.carrier());
        let mut client = Client::new(carrier, "a");
        client.minor = 2;
        story(&world, &mut client);
    }
}

/// The value of one attribute of the root.
fn attribute<C: Carrier>(client: &mut Client<C>, number: u32) -> Vec<u8> {
    let mut reply = client.call(ops().put_root().attributes(&[number]));
    reply.ok(24).ok(9);
    let words = reply.u32();
    reply.decode(|d| (0..words).for_each(|_| assert!(d.u32().is_ok())));
    reply.opaque()
}

#[derive(Debug, PartialEq)]
enum Piece {
    Data(u64, Vec<u8>),
    Hole(u64, u64),
}

/// Whether the file ends there, and what was read.
fn pieces(reply: &mut Reply) -> (bool, Vec<Piece>) {
    let eof = reply.ok(22).ok(68).u32() == 1;
    let piece = |reply: &mut Reply| match reply.u32() {
        0 => Piece::Data(reply.u64(), reply.opaque()),
        _ => Piece::Hole(reply.u64(), reply.u64()),
    };
    let count = reply.u32();
    (eof, (0..count).map(|_| piece(reply)).collect())
}

#[test]
fn a_hole_is_made_found_and_read_as_what_it_is() {
    on_both(|_, client| {
        let (file, open) = client.open("file", BOTH, 0);
        client.call(ops().put(&file).write(open, 0, 2, &[7; 4 * BLOCK as usize])).ok(22).ok(38);
        client.call(ops().put(&file).deallocate(open, BLOCK, 2 * BLOCK)).ok(22).ok(62);
        let mut seek = |offset, hole| {
            let mut reply = client.call(ops().put(&file).seek(open, offset, hole));
            reply.ok(22).ok(69);
            (reply.u32() == 1, reply.u64())
        };
        assert_eq!(seek(0, true), (false, BLOCK));
        assert_eq!(seek(BLOCK + 1, true), (false, BLOCK + 1));
        assert_eq!(seek(BLOCK, false), (false, 3 * BLOCK));
        assert_eq!(seek(5, false), (false, 5));
        assert_eq!(seek(3 * BLOCK, true), (true, 4 * BLOCK), "a hole follows each file");
        let beyond = ops().put(&file).seek(open, 4 * BLOCK, false);
        assert_eq!(client.call(beyond).status, Status::NxIo.number());
        let other = client.call(ops().put(&file).op(69, |e| e.fixed(&[0, 0, 0, 9].repeat(7))));
        assert_ne!(other.status, OK, "no such kind of content");

        let data = |at: u64, bytes: u64| Piece::Data(at, vec![7; bytes as usize]);
        let mut read = |offset, count: u64| {
            pieces(&mut client.call(ops().put(&file).read_plus(open, offset, count as u32)))
        };
        let hole = Piece::Hole(BLOCK, 2 * BLOCK);
        let all = vec![data(0, BLOCK), hole, data(3 * BLOCK, BLOCK)];
        assert_eq!(read(0, 8 * BLOCK), (true, all));
        assert_eq!(read(BLOCK, BLOCK), (false, vec![Piece::Hole(BLOCK, BLOCK)]));
        assert_eq!(read(4 * BLOCK - 3, 99), (true, vec![data(4 * BLOCK - 3, 3)]));
        assert_eq!(read(4 * BLOCK, 10), (true, vec![]));
        assert_eq!(read(0, 0), (false, vec![]));
    });
}

/// A client has made room for as many bytes as it asked for, and no more.
#[test]
fn a_reply_of_many_pieces_is_no_longer_than_one_of_data() {
    on_both(|_, client| {
        let (file, open) = client.open("file", BOTH, 0);
        for at in 0..4 {
            client.call(ops().put(&file).write(open, at * 2 * BLOCK, 0, b"x")).ok(22).ok(38);
        }
        client.call(ops().put(&file).set_size(open, 8 * BLOCK)).ok(22).ok(34);
        let (mut at, mut holes_bytes) = (0, 0);
        loop {
            let mut reply = client.call(ops().put(&file).read_plus(open, at, 1000));
            let (eof, pieces) = pieces(&mut reply);
            let bytes = pieces.iter().map(|piece| match piece {
                Piece::Data(_, data) => 16 + data.len().next_multiple_of(4),
                Piece::Hole(..) => 20,
            });
            assert!(bytes.sum::<usize>() <= 1016);
            for piece in pieces {
                let (start, length) = match piece {
                    Piece::Data(start, data) => (start, data.len() as u64),
                    Piece::Hole(start, length) => {
                        holes_bytes += length;
                        (start, length)
                    }
                };
                assert_eq!(start, at, "no gap");
                at += length;
            }
            if eof {
                break;
            }
        }
        assert_eq!(at, 8 * BLOCK);
        assert!(holes_bytes >= 4 * BLOCK);
    });
}

#[test]
fn room_is_taken_for_what_is_not_written_yet() {
    on_both(|_, client| {
        let (file, open) = client.open("file", BOTH, 0);
        client.call(ops().put(&file).allocate(open, 10, 100)).ok(22).ok(59);
        let mut read = client.call(ops().put(&file).read(open, 0, 1000));
        read.ok(22).ok(25).u32();
        assert_eq!(read.opaque(), [0; 110]);
        client.call(ops().put(&file).allocate(StateId::ANONYMOUS, 0, 1)).ok(22).ok(59);
        let mut status =
            |offset, length| client.call(ops().put(&file).allocate(open, offset, length)).status;
        assert_eq!(status(0, 0), Status::Inval.number());
        assert_eq!(status(2, u64::MAX), Status::Inval.number());
        assert_eq!(status(1 << 62, 1 << 62), Status::FBig.number());
        let (_, reads) = client.open("read", READ, 0);
        let deallocate = ops().put_root().lookup("read").deallocate(reads, 0, 1);
        assert_eq!(client.call(deallocate).status, Status::OpenMode.number());
    });
}

#[test]
fn bytes_are_copied_between_files_without_passing_the_client() {
    on_both(|_, client| {
        let (from, source) = client.open("from", BOTH, 0);
        let (to, target) = client.open("to", BOTH, 0);
        client.call(ops().put(&from).write(source, 0, 0, b"0123456789")).ok(22).ok(38);
        let copy = |at, into, length| {
            ops().put(&from).save().put(&to).copy((source, at), (target, into), length)
        };
        let mut reply = client.call(copy(2, 1, 5));
        reply.ok(22).ok(32).ok(22).ok(60);
        assert_eq!((reply.u32(), reply.u64(), reply.u32()), (0, 5, 0));
        let verifier = reply.u64();
        assert_eq!((reply.u32(), reply.u32()), (1, 1), "in order, and done");
        assert_eq!(client.call(ops().put(&to).commit()).ok(22).ok(5).u64(), verifier);
        let mut to_the_end = client.call(copy(7, 6, 0));
        to_the_end.ok(22).ok(32).ok(22).ok(60).u32();
        assert_eq!(to_the_end.u64(), 3);
        let mut read = client.call(ops().put(&to).read(target, 0, 100));
        read.ok(22).ok(25).u32();
        assert_eq!(read.opaque(), b"\x0023456789");
        assert_eq!(client.call(copy(11, 0, 0)).status, Status::Inval.number(), "behind the end");
        assert_eq!(client.call(copy(5, 0, 6)).status, Status::Inval.number(), "past the end");
        let unsaved = ops().put(&to).copy((source, 0), (target, 0), 1);
        assert_eq!(client.call(unsaved).status, Status::NoFileHandle.number());
        let swapped = ops().put(&from).save().put(&to).copy((target, 0), (source, 0), 1);
        assert_eq!(client.call(swapped).status, Status::BadStateId.number());
    });
}

/// A file system that can't share bytes says so, and the client copies them; one that can, shares them.
#[test]
fn a_clone_is_made_whole_or_refused() {
    on_both(|_, client| {
        let (from, source) = client.open("from", BOTH, 0);
        let (to, target) = client.open("to", BOTH, 0);
        client.call(ops().put(&from).write(source, 0, 0, b"0123456789")).ok(22).ok(38);
        let clone = ops().put(&from).save().put(&to).clone_range((source, 0), (target, 0), 0);
        let status = client.call(clone).status;
        let mut read = client.call(ops().put(&to).read(target, 0, 100));
        read.ok(22).ok(25).u32();
        let expected: &[u8] = if status == OK { b"0123456789" } else { b"" };
        assert!(status == OK || status == Status::NotSupp.number(), "{status}");
        assert_eq!(read.opaque(), expected);
    });
}

#[test]
fn attributes_of_users_are_set_read_listed_and_removed() {
    on_both(|world, client| {
        if attribute(client, XATTR_SUPPORT) == [0, 0, 0, 0] {
            eprintln!("SKIPPED: the file system of temporary files has no extended attributes");
            return;
        }
        let (file, _) = client.open("file", BOTH, 0);
        let mut status = |ops| client.call(ops).status;
        assert_eq!(status(ops().put(&file).get_xattr("a")), Status::NoXattr.number());
        assert_eq!(status(ops().put(&file).set_xattr(2, "a", b"")), Status::NoXattr.number());
        assert_eq!(status(ops().put(&file).set_xattr(1, "a", b"one")), OK);
        assert_eq!(status(ops().put(&file).set_xattr(1, "a", b"two")), Status::Exist.number());
        assert_eq!(status(ops().put(&file).set_xattr(2, "a", b"three")), OK);
        assert_eq!(status(ops().put(&file).set_xattr(0, "b/c", b"")), OK);
        assert_eq!(status(ops().put(&file).set_xattr(0, "", b"")), Status::Inval.number());
        assert_eq!(status(ops().put(&file).set_xattr(0, "a\0", b"")), Status::BadChar.number());
        let long = "x".repeat(251);
        assert_eq!(status(ops().put(&file).set_xattr(0, &long, b"")), Status::NameTooLong.number());
        let large = vec![0; 64 * 1024 + 1];
        assert_eq!(status(ops().put(&file).set_xattr(0, "a", &large)), Status::Xattr2Big.number());
        assert_eq!(client.call(ops().put(&file).get_xattr("a")).ok(22).ok(72).opaque(), b"three");
        let mut list = |cookie, bytes_max| {
            let mut reply = client.call(ops().put(&file).list_xattrs(cookie, bytes_max));
            if reply.ok(22).next(74) != OK {
                return Err(reply.status);
            }
            let (cookie, count) = (reply.u64(), reply.u32());
            let mut names: Vec<_> = (0..count).map(|_| reply.opaque()).collect();
            names.sort();
            Ok((cookie, names, reply.u32() == 1))
        };
        assert_eq!(list(0, 1000), Ok((2, vec![b"a".to_vec(), b"b/c".to_vec()], true)));
        let (cookie, first, all) = list(0, 24).unwrap();
        assert_eq!((cookie, first.len(), all), (1, 1, false));
        let (_, second, all) = list(cookie, 24).unwrap();
        assert_eq!(([first, second].concat().len(), all), (2, true));
        assert_eq!(list(0, 20), Err(Status::TooSmall.number()));
        assert_eq!(list(3, 1000), Err(Status::BadCookie.number()));
        let mut removed = client.call(ops().put(&file).remove_xattr("a"));
        assert_eq!(removed.ok(22).ok(75).u32(), 0, "a write may have been between");
        assert_ne!(removed.u64(), removed.u64());
        let again = client.call(ops().put(&file).remove_xattr("a"));
        assert_eq!(again.status, Status::NoXattr.number());

        let mut access = client.call(ops().put(&file).access(0x1c0));
        assert_eq!((access.ok(22).ok(3).u32(), access.u32()), (0x1c0, 0x1c0));
        let mut older = world.client("older");
        let mut access = older.call(ops().put(&file).access(0x1c0));
        assert_eq!((access.ok(22).ok(3).u32(), access.u32()), (0, 0), "4.1 has none of it");
        assert_eq!(attribute(&mut older, XATTR_SUPPORT), []);
    });
}

/// Other namespaces of the kernel, as what a program may do, are nobody's to set from afar.
#[test]
fn only_what_is_of_users_is_seen() {
    let directory = TempDir::new().unwrap();
    let world = World::local(directory.path());
    let mut client = world.client("a");
    client.minor = 2;
    let (file, _) = client.open("file", BOTH, 0);
    let path = directory.path().join("file");
    let set = |name: &str| {
        let value: &[u8] = b"value";
        rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty())
    };
    if set("user.mine").is_err() {
        eprintln!("SKIPPED: the file system of temporary files has no extended attributes");
        return;
    }
    if set("trusted.kernel").is_err() {
        eprintln!("SKIPPED in part: not root");
    }
    let mut list = client.call(ops().put(&file).list_xattrs(0, 1000));
    list.ok(22).ok(74).u64();
    assert_eq!((list.u32(), list.opaque()), (1, b"mine".to_vec()));
    let other = client.call(ops().put(&file).get_xattr("trusted.kernel"));
    assert_eq!(other.status, Status::NoXattr.number());
}

#[test]
fn advice_is_answered_and_not_taken() {
    on_both(|_, client| {
        let (file, open) = client.open("file", BOTH, 0);
        let advise = ops().put(&file).op(63, |e| {
            e.u32(open.seqid);
            e.fixed(&open.other);
            e.fixed(&[0; 16]);
            e.u32(1);
            e.u32(6);
        });
        assert_eq!(client.call(advise).ok(22).ok(63).u32(), 0);
    });
}
