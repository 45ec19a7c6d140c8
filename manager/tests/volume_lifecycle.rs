//! The life of a volume with the real engine and replicas, through the command line alone.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use ankole_api::object::Spec;
use ankole_api::objects::{BackupTargetSpec, VolumeSpec};
use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_blockdev::nbd::Client;
use ankole_store::Raw;
use common::{World, send, until, with_store};
use rustix::process::Signal;
use serde_json::Value;

const SIZE: usize = 32 << 20;

/// The same bytes everywhere.
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(SIZE);
    while bytes.len() < SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn nbdcopy(from: &str, to: &str) {
    let copied = Command::new("nbdcopy").args(["--flush", from, to]).output();
    let copied = copied.expect("nbdcopy is there: apt-get install libnbd-bin");
    assert!(copied.status.success(), "{copied:?}");
}

fn write_volume(world: &World, endpoint: &str, bytes: &[u8]) {
    let path = world.path().join("in.img");
    File::create(&path).unwrap().write_all(bytes).unwrap();
    nbdcopy(path.to_str().unwrap(), endpoint);
}

fn read_volume(world: &World, endpoint: &str) -> Vec<u8> {
    let path = world.path().join("out.img");
    let _ = std::fs::remove_file(&path);
    nbdcopy(endpoint, path.to_str().unwrap());
    read(&path)
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn attached() -> (World, String) {
    let world = World::real();
    world.well(&["volume", "create", "v1", "--size", "32MiB", "--frontend", "socket"]);
    let endpoint = world.well(&["volume", "attach", "v1"]).trim().to_owned();
    assert!(endpoint.starts_with("nbd+unix:///?socket="), "{endpoint}");
    (world, endpoint)
}

/// One write, with bytes of one value.
fn change(endpoint: &str, offset: usize, length: usize, value: u8) {
    let command = format!("write -P {value} {offset} {length}");
    let changed = Command::new("qemu-io").args(["-f", "raw", "-c", &command, endpoint]).output();
    let changed = changed.expect("qemu-io is there: apt-get install qemu-utils");
    assert!(changed.status.success(), "{changed:?}");
}

fn socket_of(endpoint: &str) -> PathBuf {
    endpoint.split_once("socket=").expect("it is a socket").1.into()
}

/// Runs what is asked of a client of the socket.
fn with_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

async fn connect(socket: &Path) -> Client {
    let deadline = std::time::Instant::now() + common::SOON;
    loop {
        match Client::connect_unix(socket, "").await {
            Ok(client) => return client,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn until_healthy(world: &World) -> Value {
    until("the volume is healthy", || {
        let volume = world.volume("v1");
        (volume["robustness"] == "healthy").then_some(volume)
    })
}

#[test]
fn what_was_written_is_there_after_detach_and_attach() {
    let (world, endpoint) = attached();
    let bytes = pattern(1);
    write_volume(&world, &endpoint, &bytes);
    world.well(&["volume", "detach", "v1"]);
    let endpoint = world.well(&["volume", "attach", "v1"]);
    assert!(read_volume(&world, endpoint.trim()) == bytes);
}

#[test]
fn a_killed_engine_loses_nothing_that_was_flushed() {
    let (world, endpoint) = attached();
    let bytes = pattern(2);
    write_volume(&world, &endpoint, &bytes);
    let before = world.volume("v1")["enginePid"].as_u64().unwrap();
    send(before.try_into().unwrap(), Signal::KILL);
    let after = until("a successor", || {
        let volume = world.volume("v1");
        let pid = volume["enginePid"].as_u64()?;
        (pid != before && volume["state"] == "attached").then_some(volume)
    });
    assert_eq!(after["endpoint"], endpoint.as_str(), "a client reconnects where it was");
    assert!(read_volume(&world, &endpoint) == bytes);
}

/// A device goes on by itself, which `ci/vm/tests/volume` proves; clients of the socket reconnect.
#[test]
fn an_engine_hands_over_to_one_of_another_binary() {
    let (world, endpoint) = attached();
    let bytes = pattern(4);
    write_volume(&world, &endpoint, &bytes);
    let old = world.json(&["volume", "show", "v1"])["enginePid"].as_u64().unwrap();
    let other = world.path().join("ankole-other");
    std::fs::copy(env!("CARGO_BIN_EXE_ankole"), &other).unwrap();

    let refused = world.say(&["engine", "upgrade", "v1", "--program", "/bin/false"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("/bin/false: it has no `engine run`"), "{}", refused.err);
    world.well(&["engine", "upgrade", "v1", "--program", other.to_str().unwrap()]);

    let shown = world.json(&["volume", "show", "v1"]);
    let new = shown["enginePid"].as_u64().unwrap();
    assert_ne!(new, old);
    assert_eq!(std::fs::read_link(format!("/proc/{new}/exe")).unwrap(), other);
    assert_eq!(shown["unsettledBytes"], 0, "the old one has said goodbye");
    assert!(read_volume(&world, &endpoint) == bytes);
}

#[test]
fn a_killed_replica_is_rebuilt_with_what_it_missed() {
    let (world, endpoint) = attached();
    let pid = until_healthy(&world)["replicas"][1]["pid"].as_u64().unwrap();
    send(pid.try_into().unwrap(), Signal::KILL);
    let bytes = pattern(3);
    write_volume(&world, &endpoint, &bytes);
    let volume = until_healthy(&world);
    assert_ne!(volume["replicas"][1]["pid"].as_u64(), Some(pid));
    // Only the rebuilt one remains: what is read now is its copy.
    for number in [0, 2] {
        let directory = volume["replicas"][number]["directory"].as_str().unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        let pid = volume["replicas"][number]["pid"].as_u64().unwrap();
        send(pid.try_into().unwrap(), Signal::KILL);
    }
    assert!(read_volume(&world, &endpoint) == bytes);
}

#[test]
fn a_volume_reverts_to_its_snapshot() {
    let (world, endpoint) = attached();
    let bytes = pattern(4);
    write_volume(&world, &endpoint, &bytes);
    assert_eq!(world.well(&["snapshot", "create", "v1", "s1"]), "s1\n");
    let twice = world.say(&["snapshot", "create", "v1", "s1"]);
    assert_eq!(twice.code, 4, "{twice:?}");
    write_volume(&world, &endpoint, &pattern(5));
    world.well(&["snapshot", "revert", "v1", "s1", "--yes"]);
    assert!(read_volume(&world, &endpoint) == bytes);
    let chain = world.json(&["snapshot", "ls", "v1", "--tree"]);
    assert_eq!(chain["headParent"], "s1");
    assert_eq!(world.say(&["snapshot", "rm", "v1", "s9", "--yes"]).code, 3);
}

#[test]
fn io_goes_on_while_the_standalone_is_killed_and_started_again() {
    let (mut world, endpoint) = attached();
    let mut before = world.processes();
    before.sort_unstable();
    assert_eq!(before.len(), 4);
    world.kill();
    let bytes = pattern(6);
    write_volume(&world, &endpoint, &bytes);
    world.start();
    let mut after = world.processes();
    after.sort_unstable();
    assert_eq!(after, before, "adopted, not started again");
    assert!(read_volume(&world, &endpoint) == bytes);
    until_healthy(&world);
    assert_eq!(world.stop().code(), Some(0));
    assert!(world.processes().is_empty());
}

/// A second engine was granted beside the living one, which ended by being fenced, and a replica's
/// successor died every few seconds, since the living one has its directory.
#[test]
fn processes_whose_pid_files_are_lost_or_torn_are_adopted() {
    let (mut world, endpoint) = attached();
    write_volume(&world, &endpoint, &pattern(3));
    let before = world.volume("v1");
    world.kill();
    let run = world.data().join("run");
    std::fs::remove_file(run.join("v1.engine.process")).unwrap();
    std::fs::write(run.join("v1.r1.process"), "{\"bootId\":").unwrap();
    world.start();
    let after = until_healthy(&world);
    assert_eq!(after["enginePid"], before["enginePid"]);
    assert_eq!(after["record"]["generation"], before["record"]["generation"], "none was granted");
    assert_eq!(after["replicas"][0]["pid"], before["replicas"][0]["pid"]);
    assert_eq!(read_volume(&world, &endpoint), pattern(3));
    assert_eq!(world.stop().code(), Some(0));
}

/// Too many open files was taken for "there is no process": its pid file was deleted.
#[test]
fn a_start_that_runs_out_of_descriptors_forgets_no_process() {
    let (mut world, _) = attached();
    let before = world.volume("v1");
    world.kill();
    let address = world.data().join("run/api.addr");
    let (program, data) = (env!("CARGO_BIN_EXE_ankole"), world.data().display().to_string());
    for limit in 8..24 {
        let mut command = Command::new("sh");
        let line = format!(
            "ulimit -n {limit}; exec {program} --data {data} standalone --listen 127.0.0.1:0"
        );
        command.args(["-c", &line]).env("XDG_RUNTIME_DIR", world.path());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        until("it runs or has ended", || {
            (address.exists() || child.try_wait().unwrap().is_some()).then_some(())
        });
        let _ = child.kill();
        child.wait().unwrap();
        let _ = std::fs::remove_file(&address);
        assert_eq!(world.processes().len(), 4, "with {limit} descriptors");
    }
    world.start();
    let after = until_healthy(&world);
    assert_eq!(after["enginePid"], before["enginePid"]);
    assert_eq!(after["record"]["generation"], before["record"]["generation"], "none was granted");
}

/// Cleaners of old files do this. I/O went on, and the manager said "starts" for ever.
#[test]
fn sockets_that_somebody_removed_are_made_anew_by_whoever_listens_there() {
    let (world, endpoint) = attached();
    write_volume(&world, &endpoint, &pattern(4));
    let before = world.volume("v1");
    let run = world.data().join("run");
    let mut removed = 0;
    for entry in std::fs::read_dir(&run).unwrap() {
        let entry = entry.unwrap();
        if std::os::unix::fs::FileTypeExt::is_socket(&entry.file_type().unwrap()) {
            std::fs::remove_file(entry.path()).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 7, "engine's two, three replicas', arbiter's and the API's");
    until("all are back", || {
        let names = ["v1.admin", "v1.nbd", "v1.r1", "v1.r2", "v1.r3", "arbiter.sock", "api.sock"];
        names.iter().all(|name| run.join(name).exists()).then_some(())
    });
    let after = until_healthy(&world);
    assert_eq!(after["enginePid"], before["enginePid"]);
    assert_eq!(read_volume(&world, &endpoint), pattern(4));
    // A member that leaves the set is recorded by the arbiter at its new socket.
    common::send(after["replicas"][2]["pid"].as_u64().unwrap() as u32, Signal::KILL);
    change(&endpoint, 0, 4096, 9);
    until_healthy(&world);
}

/// Its sockets lay under /tmp, or in a folder that a logout takes away.
#[test]
fn a_data_folder_with_a_long_path_has_its_sockets_inside_and_is_served_to_any_client() {
    let mut world = World::at_a_long_path();
    world.well(&["volume", "create", "v1", "--size", "32MiB", "--frontend", "socket"]);
    let endpoint = world.well(&["volume", "attach", "v1"]).trim().to_owned();
    write_volume(&world, &endpoint, &pattern(5));
    for name in ["v1.admin", "v1.nbd", "v1.r1", "arbiter.sock", "api.sock"] {
        assert!(world.data().join("run").join(name).exists(), "{name}");
    }
    world.kill();
    world.start();
    until_healthy(&world);
    assert_eq!(read_volume(&world, &endpoint), pattern(5));
    assert_eq!(world.stop().code(), Some(0));
    assert!(!socket_of(&endpoint).parent().unwrap().exists(), "the short name is gone");
}

/// After 30 s its engine and its replicas were killed, and its clients had no disk any more.
#[test]
fn at_sigterm_a_volume_that_is_used_goes_on_and_the_next_start_looks_after_it() {
    let (mut world, endpoint) = attached();
    world.well(&["volume", "create", "v2", "--size", "2MiB", "--frontend", "socket"]);
    world.well(&["volume", "attach", "v2"]);
    let before = world.volume("v1");
    with_runtime(async {
        let client = connect(&socket_of(&endpoint)).await;
        let at = Extent { offset_bytes: 0, length_bytes: 4096 };
        world.signal(Signal::TERM);
        assert_eq!(world.wait().code(), Some(0));
        let log = world.log();
        let pid = before["enginePid"].as_u64().unwrap();
        let said = format!(
            "v1 is left as it is: 1 client(s) of its socket use it; its engine, process {pid}, goes on"
        );
        assert!(log.contains(&said), "{log}");
        assert!(!log.contains("v2 is in use"), "{log}");
        assert_eq!(world.processes().len(), 4, "v2's have ended");
        let _ = client.write(at, Buffer::copy_of(&[7; 4096]), Durability::Volatile).await.unwrap();
        world.start();
        assert_eq!(until_healthy(&world)["enginePid"], before["enginePid"]);
        let (read, buffer) = client.read(at, Buffer::zeroed(4096)).await;
        let _ = read.unwrap();
        assert!(buffer.iter().all(|byte| *byte == 7));
    });
    assert_eq!(world.stop().code(), Some(0));
    assert!(world.processes().is_empty(), "nobody uses it any more");
}

#[test]
fn an_attached_volume_grows_under_its_clients() {
    let (world, endpoint) = attached();
    world.well(&["volume", "resize", "v1", "--size", "64MiB"]);
    until("the engine has grown", || {
        let size = Command::new("nbdinfo").args(["--size", &endpoint]).output().unwrap();
        (String::from_utf8_lossy(&size.stdout).trim() == "67108864").then_some(())
    });
}

/// The content of a volume must not change under a client that may have cached it.
#[test]
fn a_revert_is_refused_while_a_client_is_connected() {
    let (world, endpoint) = attached();
    world.well(&["snapshot", "create", "v1", "s1"]);
    let revert = ["snapshot", "revert", "v1", "s1", "--yes"];
    with_runtime(async {
        let client = connect(&socket_of(&endpoint)).await;
        let refused = world.say(&revert);
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.err.contains("1 client"), "{refused:?}");
        client.disconnect().await.unwrap();
    });
    until("the engine knows that the client left", || (world.say(&revert).code == 0).then_some(()));
}

/// Every copy of the volume is written through a replica's death and its rebuild: nbdcopy ends with
/// an error if a single request fails.
#[test]
fn no_write_fails_while_a_replica_is_killed_and_rebuilt() {
    let (world, endpoint) = attached();
    let pid = until_healthy(&world)["replicas"][2]["pid"].as_u64().unwrap();
    let bytes = pattern(9);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| (0..3).for_each(|_| write_volume(&world, &endpoint, &bytes)));
        until("the load has begun", || (world.volume("v1")["clients"] != 0).then_some(()));
        send(pid.try_into().unwrap(), Signal::KILL);
        load.join().unwrap();
    });
    let volume = until_healthy(&world);
    assert_ne!(volume["replicas"][2]["pid"].as_u64(), Some(pid));
    assert!(read_volume(&world, &endpoint) == bytes);
}

/// A client that connects again and repeats what had no answer finds all that was answered, also
/// what it never flushed.
#[test]
fn a_client_that_reconnects_after_the_engine_was_killed_loses_nothing() {
    const PIECE: usize = 1 << 20;
    let (world, endpoint) = attached();
    let engine = world.volume("v1")["enginePid"].as_u64().unwrap();
    let bytes = pattern(10);
    let socket = socket_of(&endpoint);
    let mut deaths = 0;
    with_runtime(async {
        let mut client = connect(&socket).await;
        for (number, piece) in bytes.chunks(PIECE).enumerate() {
            if number == 20 {
                send(engine.try_into().unwrap(), Signal::KILL);
            }
            let offset_bytes = (number * PIECE) as u64;
            let at = Extent { offset_bytes, length_bytes: PIECE as u64 };
            loop {
                let mut buffer = Buffer::zeroed(PIECE);
                buffer.copy_from_slice(piece);
                match client.write(at, buffer, Durability::Volatile).await {
                    Ok(_) => break,
                    Err(_) => {
                        deaths += 1;
                        client = connect(&socket).await;
                    }
                }
            }
        }
    });
    assert!(deaths > 0);
    assert!(read_volume(&world, &endpoint) == bytes);
}

#[test]
fn a_single_replica_lives_in_the_engine_and_three_speak_tcp() {
    let world = World::real();
    let bytes = pattern(7);
    let kinds: [(&str, &[&str]); 2] =
        [("v1", &["--replicas", "1", "--in-engine"]), ("v2", &["--transport", "tcp"])];
    for (name, options) in kinds {
        let create = ["volume", "create", name, "--size", "32MiB", "--frontend", "socket"];
        world.well(&[&create[..], options].concat());
        let endpoint = world.well(&["volume", "attach", name]);
        write_volume(&world, endpoint.trim(), &bytes);
        assert!(read_volume(&world, endpoint.trim()) == bytes, "{name}");
    }
    // The engine shows its own replica to the backup.
    let backup = back_up(&world, &target(&world));
    assert!(restored(&world, &backup) == bytes);
}

/// The walk of the README, with the image's size told apart from the volume's.
#[test]
fn the_walk_of_the_readme_ends_with_the_same_bytes() {
    let world = World::real();
    let target = target(&world);
    world.well(&[
        "volume",
        "create",
        "v1",
        "--size",
        "1GiB",
        "--replicas",
        "3",
        "--frontend",
        "socket",
    ]);
    let endpoint = world.well(&["volume", "attach", "v1"]);
    assert_eq!(world.volume("v1")["endpoint"], endpoint.trim());
    let bytes = pattern(11);
    write_volume(&world, endpoint.trim(), &bytes);
    world.well(&["snapshot", "create", "v1", "s1"]);
    world.well(&["backup", "create", "v1", "--snapshot", "s1", "--target", &target]);
    let list = world.json(&["backup", "ls", "--target", &target]);
    assert_eq!((&list[0]["volume"], &list[0]["snapshot"]), (&"v1".into(), &"s1".into()));
    let url = list[0]["url"].as_str().unwrap();
    let file = world.path().join("restored.img");
    world.well(&["backup", "restore", url, "--to-file", file.to_str().unwrap()]);
    assert_eq!(file.metadata().unwrap().len(), 1 << 30);
    let mut restored = vec![0; SIZE];
    File::open(&file).unwrap().read_exact(&mut restored).unwrap();
    assert!(restored == bytes);
}

/// A folder for backups.
fn target(world: &World) -> String {
    let folder = world.path().join("backups");
    std::fs::create_dir(&folder).unwrap();
    format!("file://{}", folder.display())
}

/// Of the volume `v1` with a snapshot of its own.
fn back_up(world: &World, target: &str) -> Value {
    world.json(&["backup", "create", "v1", "--target", target])
}

fn restored(world: &World, backup: &Value) -> Vec<u8> {
    let file = world.path().join(backup["name"].as_str().unwrap());
    let url = backup["url"].as_str().unwrap();
    world.well(&["backup", "restore", url, "--to-file", file.to_str().unwrap()]);
    let bytes = read(&file);
    std::fs::remove_file(file).unwrap();
    bytes
}

#[test]
fn an_increment_uploads_only_what_changed() {
    let (world, endpoint) = attached();
    let mut bytes = pattern(12);
    write_volume(&world, &endpoint, &bytes);
    let target = target(&world);
    let full = back_up(&world, &target);
    assert!(full["newBytes"].as_u64().unwrap() >= SIZE as u64, "{full}");
    let (offset, length) = (10 << 20, SIZE / 100 / 4096 * 4096);
    change(&endpoint, offset, length, 0x5a);
    bytes[offset..offset + length].fill(0x5a);
    let increment = back_up(&world, &target);
    assert!(increment["newBytes"].as_u64().unwrap() <= 2 << 20, "one block: {increment}");
    assert!(restored(&world, &increment) == bytes);
    // The first one stands on its own.
    world.well(&["backup", "rm", increment["url"].as_str().unwrap(), "--yes"]);
    bytes = pattern(12);
    assert!(restored(&world, &full) == bytes);
}

/// The last backup's snapshot is then on another branch: an increment since it would bring back
/// what was reverted.
#[test]
fn a_backup_after_a_revert_holds_nothing_of_the_other_branch() {
    let (world, endpoint) = attached();
    let target = target(&world);
    let mut bytes = vec![0; SIZE];
    change(&endpoint, 0, 4096, 1);
    bytes[..4096].fill(1);
    world.well(&["snapshot", "create", "v1", "s1"]);
    change(&endpoint, 8 << 20, 4096, 2);
    back_up(&world, &target);
    let revert = ["snapshot", "revert", "v1", "s1", "--yes"];
    until("no client is left", || (world.say(&revert).code == 0).then_some(()));
    change(&endpoint, 16 << 20, 4096, 3);
    bytes[16 << 20..(16 << 20) + 4096].fill(3);
    let backup = back_up(&world, &target);
    assert!(restored(&world, &backup) == bytes);
}

/// The replica that the backup reads from dies in the middle; others have the same bytes.
#[test]
fn a_backup_goes_on_when_its_replica_dies() {
    let (world, endpoint) = attached();
    let bytes = pattern(13);
    write_volume(&world, &endpoint, &bytes);
    // Again, should the backup have ended before the replica.
    for attempt in 0..5 {
        let pid = until_healthy(&world)["replicas"][0]["pid"].as_u64().unwrap();
        let folder = world.path().join(format!("backups-{attempt}"));
        std::fs::create_dir(&folder).unwrap();
        let target = format!("file://{}", folder.display());
        let backup = std::thread::scope(|scope| {
            let backup = scope.spawn(|| back_up(&world, &target));
            until("the first block is stored", || find(&folder, "blk"));
            send(pid.try_into().unwrap(), Signal::KILL);
            backup.join().unwrap()
        });
        assert!(restored(&world, &backup) == bytes);
        let logs = logs_of(&world.data().join("run/jobs"));
        if logs.iter().any(|log| log.contains("asks another replica")) {
            return;
        }
    }
    panic!("no backup was reading when its replica died");
}

/// The client of the engine's socket connects to the successor and repeats what had no answer.
#[test]
fn a_restore_goes_on_when_its_engine_dies() {
    let (world, endpoint) = attached();
    let bytes = pattern(14);
    write_volume(&world, &endpoint, &bytes);
    let backup = back_up(&world, &target(&world));
    let restore = ["backup", "restore", backup["url"].as_str().unwrap(), "--to", "v2"];
    std::thread::scope(|scope| {
        let restore = scope.spawn(|| world.well(&restore));
        let pid = until("v2 has a client", || {
            let said = world.say(&["volume", "show", "v2", "-o", "json"]);
            let volume: Value = serde_json::from_str(&said.out).ok()?;
            (volume["clients"] != 0).then(|| volume["enginePid"].as_u64())?
        });
        let refused = world.say(&["volume", "attach", "v2"]);
        assert_eq!(refused.code, 4, "nobody may see a half: {refused:?}");
        send(pid.try_into().unwrap(), Signal::KILL);
        restore.join().unwrap();
    });
    let endpoint = world.well(&["volume", "attach", "v2"]);
    assert!(read_volume(&world, endpoint.trim()) == bytes);
}

/// A volume that holds half a backup must not be taken for a restored one.
#[test]
fn a_restore_that_fails_leaves_no_volume() {
    let (world, endpoint) = attached();
    let target = target(&world);
    change(&endpoint, 0, 4096, 7);
    let backup = back_up(&world, &target);
    let url = backup["url"].as_str().unwrap();
    let missing = url.replace("backup-", "backup-0");
    assert_eq!(world.say(&["backup", "restore", &missing, "--to", "v2"]).code, 3);
    let block = find(&world.path().join("backups"), "blk").expect("there is one");
    std::fs::write(&block, b"garbage").unwrap();
    assert_eq!(world.say(&["backup", "verify", url]).code, 1);
    let said = world.say(&["backup", "restore", url, "--to", "v2"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("removed again"), "{said:?}");
    until("the volume is gone", || (world.say(&["volume", "show", "v2"]).code == 3).then_some(()));
}

/// It ended with the standalone, and the volume was removed at the next start.
#[test]
fn a_restore_goes_on_while_the_standalone_is_killed_and_started_again() {
    let (mut world, endpoint) = attached();
    let bytes = pattern(15);
    write_volume(&world, &endpoint, &bytes);
    let backup = back_up(&world, &target(&world));
    let url = backup["url"].as_str().unwrap();
    let mut restore =
        world.ankole().args(["backup", "restore", url, "--to", "v2"]).spawn().unwrap();
    until("the restore has the volume", || {
        let said = world.say(&["volume", "show", "v2", "-o", "json"]);
        let volume: Value = serde_json::from_str(&said.out).ok()?;
        (volume["tickets"][0]["kind"] == "restore").then_some(())
    });
    world.kill();
    // It may have ended just before.
    restore.wait().unwrap();
    world.start();
    until("the volume is restored", || (world.volume("v2")["state"] == "detached").then_some(()));
    let restored = world.well(&["volume", "attach", "v2"]);
    assert!(read_volume(&world, restored.trim()) == bytes);
    assert!(world.volume("v1")["state"] == "attached");
}

/// What the processes of all jobs have said.
fn logs_of(jobs: &Path) -> Vec<String> {
    let folders = std::fs::read_dir(jobs).unwrap().map(|folder| folder.unwrap().path());
    folders.filter_map(|folder| std::fs::read_to_string(folder.join("log")).ok()).collect()
}

/// The first file with this extension.
fn find(folder: &Path, extension: &str) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.find_map(|path| match path.is_dir() {
        true => find(&path, extension),
        false => path.extension().is_some_and(|found| found == extension).then_some(path),
    })
}

#[test]
fn a_backup_is_restored_to_a_volume_and_to_a_file() {
    let (world, endpoint) = attached();
    let bytes = pattern(8);
    write_volume(&world, &endpoint, &bytes);
    world.well(&["snapshot", "create", "v1", "s1"]);
    let target = target(&world);
    let url = world.well(&["backup", "create", "v1", "--snapshot", "s1", "--target", &target]);
    let url = url.trim();
    assert_eq!(world.well(&["backup", "ls", "--target", &target, "-o", "name"]).trim(), url);
    world.well(&["backup", "verify", url]);
    world.well(&["backup", "restore", url, "--to", "v2"]);
    let restored = world.well(&["volume", "attach", "v2"]);
    assert!(read_volume(&world, restored.trim()) == bytes);
    let file = world.path().join("restored.img");
    world.well(&["backup", "restore", url, "--to-file", file.to_str().unwrap()]);
    assert!(read(&file) == bytes);
    world.well(&["backup", "rm", url, "--yes"]);
    assert_eq!(world.well(&["backup", "ls", "--target", &target, "-o", "name"]), "");
}

/// One object that another version wrote, or that was damaged, kept the standalone from starting
/// and, while it ran, every volume from being looked after.
#[test]
fn an_object_that_can_not_be_read_is_shown_so_and_stops_no_other() {
    let mut world = World::real();
    let create = ["volume", "create", "v2", "--size", "2MiB", "--replicas", "1"];
    world.well(&[&create[..], &["--frontend", "socket"]].concat());
    world.stop();
    let later = |name: &str| {
        let object = r#"{"metadata":{"name":"NAME"},"spec":{"frontend":"hologram"}}"#;
        Raw::from_json(&object.replace("NAME", name)).unwrap()
    };
    with_store(&world, async |store| {
        store.create_raw(VolumeSpec::KIND, later("v1")).await.unwrap();
        store.create_raw(BackupTargetSpec::KIND, later("t1")).await.unwrap();
    });
    world.start();
    let volumes = world.json(&["volume", "ls"]);
    assert_eq!(volumes[0]["state"], "unreadable");
    assert_eq!(volumes[1]["state"], "detached");
    let why = world.well(&["volume", "why", "v1"]);
    for part in ["v1 in the store can't be read", "hologram", "Next:"] {
        assert!(why.contains(part), "{part:?} isn't in {why}");
    }
    world.well(&["volume", "attach", "v2"]);
    assert_eq!(world.say(&["volume", "attach", "v1"]).code, 1);
    world.well(&["target", "ls"]);
    world.well(&["target", "add", "t2", &format!("file://{}", world.path().display())]);
    world.stop();
    with_store(&world, async |store| {
        let left = store.get_raw(VolumeSpec::KIND, "v1").await.unwrap().unwrap();
        assert_eq!(left.spec(), later("v1").spec(), "it is left as it is");
    });
}
