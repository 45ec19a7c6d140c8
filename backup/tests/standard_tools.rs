//! What we write, read by programs that know nothing of us: `lz4`, `gzip` and `sha512sum`.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use ankole_backup::block::CompressionMethod;
use ankole_backup::layout::VolumePaths;
use ankole_backup::target::{DirectoryTarget, Target};
use ankole_backup::*;
use common::*;

/// `None`, said aloud, if the tool isn't installed; a failure if that must not be.
fn run(tool: &str, args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(tool).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let skipped = format!("SKIPPED: {tool} isn't installed (Debian: apt install {tool})");
            assert!(std::env::var_os("ANKOLE_TEST_REQUIRE_TOOLS").is_none(), "{skipped}");
            println!("{skipped}");
            return None;
        }
        Err(error) => panic!("{tool}: {error}"),
    };
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{tool} refuses what we wrote");
    Some(output.stdout)
}

/// Our own reader could share a mistake with our writer; these can't.
#[test]
fn standard_tools_decode_and_name_every_block() {
    for method in [CompressionMethod::Lz4, CompressionMethod::Gzip, CompressionMethod::None] {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryTarget::open("file:///t".into(), dir.path().to_owned()).unwrap();
        let mut model = Model::new("vol", 16 << 20);
        model.write(0, 512, 1);
        model.write(600, 1, 2);
        for (at, byte) in model.bytes[4 << 20..6 << 20].iter_mut().enumerate() {
            *byte = (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
        }
        model.write(2048, 1, 0);
        model.write(1030, 1, 5);
        let mut wanted = request("b1");
        (wanted.block_bytes, wanted.compression) = (2 << 20, method);
        let report = back_up(&target, &model.snapshot("s1"), &wanted, &unobserved).unwrap();
        assert_eq!(report.manifest.mappings().len(), 4);

        for mapping in report.manifest.mappings() {
            let key = VolumePaths::of(&name("vol")).block(&mapping.checksum);
            let object = target.read(&key, 1 << 30).unwrap();
            let block = match method {
                CompressionMethod::Lz4 => run("lz4", &["-d", "-c", "-"], &object),
                CompressionMethod::Gzip => run("gzip", &["-d", "-c"], &object),
                CompressionMethod::None => Some(object),
            };
            let Some(block) = block else { return };
            let at = mapping.offset_bytes as usize;
            assert!(block == model.bytes[at..at + (2 << 20)], "block at {at}");
            let Some(sum) = run("sha512sum", &[], &block) else { return };
            assert_eq!(String::from_utf8(sum).unwrap()[..64], mapping.checksum.to_string());
        }
    }
}

/// The other way round: frames with every option that the lz4 program knows are read.
#[test]
fn frames_with_other_options_are_read() {
    let plain = b"long-horned cattle of the Ankole ".repeat(40_000)[..1 << 20].to_vec();
    let checksum = ankole_backup::block::BlockChecksum::of(&plain);
    for args in [
        &["-c", "-1"][..],
        &["-c", "-9", "-B4"],
        &["-c", "-B4", "-BD"],
        &["-c", "-B7", "-BX"],
        &["-c", "--no-frame-crc"],
        &["-c", "--fast=5", "-B5", "-BD"],
    ] {
        let Some(object) = run("lz4", args, &plain) else { return };
        let method = CompressionMethod::Gzip; // recorded wrongly: the header decides
        let decoded = ankole_backup::block::decode(method, &object, 1 << 20, &checksum);
        assert!(decoded.is_ok_and(|block| block == plain), "lz4 {args:?}");
    }
    let Some(object) = run("gzip", &["-c", "-9"], &plain) else { return };
    let method = CompressionMethod::Lz4;
    assert!(ankole_backup::block::decode(method, &object, 1 << 20, &checksum).is_ok());
}
