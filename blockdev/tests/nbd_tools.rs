//! The clients that people use must accept the server, and find the bytes that they wrote.
#![allow(clippy::unwrap_used, reason = "a test that finds something missing has failed")]

mod common;

use ankole_blockdev::disk::MemoryDisk;
use common::{MIB, Random, Served, Setup, has_tools, run, seed, write_sparse_image};

fn memory() -> MemoryDisk {
    MemoryDisk::new(64 * MIB)
}

/// What we announce decides what clients do: a missing flag makes them slow, a wrong one corrupts.
#[test]
fn nbdinfo_sees_the_export_and_what_it_can_do() {
    if !has_tools(&["nbdinfo"]) {
        return;
    }
    let served = Served::new(memory);
    let told = run("nbdinfo", &[&served.uri]);
    for expected in [
        "newstyle-fixed without TLS, using structured",
        "export=\"disk\"",
        "export-size: 67108864",
        "base:allocation",
        "is_read_only: false",
        "can_df: true",
        "can_fast_zero: false",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(told.contains(expected), "nbdinfo doesn't say {expected:?}:\n{told}");
    }
    let list = run("nbdinfo", &["--list", &served.uri]);
    assert!(list.contains("export=\"disk\""), "{list}");
}

/// A client that trusts the flag would otherwise find out at its first write.
#[test]
fn a_read_only_export_says_so_and_refuses_writes() {
    if !has_tools(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let served = Served::with(Setup { read_only: true, ..Setup::default() }, memory);
    let told = run("nbdinfo", &[&served.uri]);
    for expected in ["is_read_only: true", "can_trim: false", "can_zero: false"] {
        assert!(told.contains(expected), "nbdinfo doesn't say {expected:?}:\n{told}");
    }
    run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 1M", &served.uri]);
}

/// A copy goes through structured reads, holes, zeroing and several connections at once.
#[test]
fn nbdcopy_there_and_back_changes_nothing() {
    if !has_tools(&["nbdcopy", "nbdinfo", "qemu-img"]) {
        return;
    }
    let mut random = Random(seed());
    for tcp in [false, true] {
        let served = Served::with(Setup { tcp, ..Setup::default() }, memory);
        let (original, copy) = (served.file("original"), served.file("copy"));
        write_sparse_image(original.as_ref(), 64 * MIB, &mut random);
        run("nbdcopy", &["--flush", &original, &served.uri]);
        run("nbdcopy", &[&served.uri, &copy]);
        let (original_bytes, copied) =
            (std::fs::read(&original).unwrap(), std::fs::read(&copy).unwrap());
        assert!(original_bytes == copied, "the copy differs from the original");

        // The map must tell data where there is data; a wrong hole loses it in every sparse copy.
        let map = run("nbdinfo", &["--map", &served.uri]);
        let mut end = 0;
        for line in map.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (offset, length): (usize, usize) =
                (fields[0].parse().unwrap(), fields[1].parse().unwrap());
            assert_eq!(offset, end, "gap in the map:\n{map}");
            end = offset + length;
            let is_zero = original_bytes[offset..end].iter().all(|&byte| byte == 0);
            assert!(fields[2] == "0" || is_zero, "{line} holds data");
            assert!(fields[2] == "3" || !is_zero, "{line} holds none");
        }
        assert_eq!(end, original_bytes.len());
    }
}

#[test]
fn qemu_img_converts_and_finds_images_identical() {
    if !has_tools(&["qemu-img"]) {
        return;
    }
    let served = Served::new(memory);
    let (original, copy) = (served.file("original"), served.file("copy"));
    write_sparse_image(original.as_ref(), 64 * MIB, &mut Random(seed()));
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &original, &served.uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &original, &served.uri]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &served.uri, &copy]);
    assert!(std::fs::read(original).unwrap() == std::fs::read(copy).unwrap());
}

/// Each kind of request once, with patterns that show whether it hit the right place. qemu-io
/// ends with an error if a pattern isn't found.
#[test]
fn qemu_io_reads_what_it_wrote_zeroed_and_discarded() {
    if !has_tools(&["qemu-io"]) {
        return;
    }
    let served = Served::new(memory);
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 4096 4096",
        "write -P 0x33 512 512", // not a whole block
        "read -P 0x11 0 512",
        "read -P 0x33 512 512",
        "read -P 0x11 1024 3072",
        "read -P 0x22 4096 4096",
        "write -z 512 1024", // cuts the block that was written in part
        "read -P 0 512 1024",
        "read -P 0x11 1536 2560",
        "write -z -u 64k 64k",
        "read -P 0 64k 64k",
        "discard 128k 64k",
        "read -P 0 128k 64k",
        "read -P 0x11 192k 64k",
        "flush",
        "write -P 0x44 32M 32M", // the longest request there is
        "read -P 0x44 32M 32M",
    ];
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(&served.uri);
    run("qemu-io", &arguments);
}

/// Many requests in flight, of mixed sizes, each checked when read back.
#[test]
fn fio_verifies_random_writes_at_depth() {
    if !has_tools(&["fio"]) {
        return;
    }
    let seed = format!("--randseed={}", seed());
    for tcp in [false, true] {
        let served = Served::with(Setup { tcp, ..Setup::default() }, memory);
        let uri = format!("--uri={}", served.uri);
        let told = run(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--rw=randrw",
                "--bsrange=512-256k",
                "--bs_unaligned=0",
                "--blockalign=512",
                "--iodepth=32",
                "--size=48m",
                "--verify=crc32c",
                "--fsync=64",
                "--verify_state_save=0",
                &seed,
            ],
        );
        assert!(told.contains("err= 0"), "{told}");
    }
}
