//! The verbs of backups on stores that are damaged, foreign or misnamed. Most need no server.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod common;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ankole_backup::layout::VolumePaths;
use ankole_backup::{
    BackupRequest, Changed, LockTimes, Name, Source, TargetUrl, back_up, unobserved,
};
use common::{Said, World};

const VOLUME_BYTES: u64 = 8 << 20;
const BLOCK_BYTES: usize = 2 << 20;

/// Every block differs from the others.
struct Image(String);

impl Source for Image {
    fn volume(&self) -> &str {
        &self.0
    }
    fn size_bytes(&self) -> u64 {
        VOLUME_BYTES
    }
    fn snapshot_name(&self) -> &str {
        "s1"
    }
    fn snapshot_id(&self) -> &str {
        "id.1"
    }
    fn changed(&self, _since: Option<&str>) -> io::Result<Changed> {
        Ok(Changed::Everything(std::iter::once(0..VOLUME_BYTES).collect()))
    }
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        into.fill(offset_bytes.to_le_bytes()[2]);
        Ok(())
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With a backup `b1` of each volume.
    fn with(volumes: &[&str]) -> Self {
        let place = Self::new();
        let target = place.url().parse::<TargetUrl>().unwrap().open().unwrap();
        for volume in volumes {
            let mut request = BackupRequest::new("b1".parse().unwrap());
            request.lock_times = LockTimes { settle: Duration::ZERO, ..LockTimes::default() };
            back_up(&*target, &Image((*volume).into()), &request, &unobserved).unwrap();
        }
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
    fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }
    fn backup(&self, volume: &str) -> String {
        format!("{}?backup=b1&volume={volume}", self.url())
    }
    fn object(&self, key: &str) -> PathBuf {
        self.path().join(key)
    }
    fn volume_manifest(&self, volume: &str) -> PathBuf {
        self.object(&paths(volume).volume_manifest())
    }
    fn backup_manifest(&self, volume: &str) -> PathBuf {
        self.object(&paths(volume).backup_manifest(&"b1".parse().unwrap()))
    }

    /// Only its table, and only what is said beside it.
    fn list(&self, folder: &str) -> (String, String) {
        let said = ankole(&["backup", "ls", "--target", &format!("{}{folder}", self.url())]);
        assert_eq!(said.status.code(), Some(0), "{said:?}");
        texts(said)
    }
}

fn paths(volume: &str) -> VolumePaths {
    VolumePaths::of(&volume.parse::<Name>().unwrap())
}

fn ankole(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ankole"));
    command.args(args).env_clear().stdin(Stdio::null()).output().unwrap()
}

fn texts(output: Output) -> (String, String) {
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// What Longhorn would have written.
fn as_longhorn(place: &Place, volume: &str) {
    edit(&place.backup_manifest(volume), |json| json["Labels"] = serde_json::Value::Null);
}

/// A damaged volume.cfg hid every backup of the target, just when such a list is needed.
#[test]
fn a_damaged_volume_hides_no_other_and_its_own_backups_are_named() {
    for damage in [&b""[..], b"{"] {
        let place = Place::with(&["va", "vb", "vc"]);
        as_longhorn(&place, "va");
        std::fs::write(place.volume_manifest("va"), damage).unwrap();
        std::fs::remove_file(place.volume_manifest("vb")).unwrap();
        let (table, remarks) = place.list("");
        let states = table.lines().skip(1).map(|line| {
            let cells: Vec<_> = line.split_whitespace().collect();
            (cells[1], line.contains("complete"))
        });
        let states: Vec<_> = states.collect();
        assert_eq!(states, [("va", false), ("vb", true), ("vc", true)], "{table}");
        let manifest = place.volume_manifest("va").display().to_string();
        assert!(remarks.contains(&manifest) && remarks.contains("volume va"), "{remarks}");
        // One that says itself what it needs, is restored without its volume's manifest.
        let image = place.object("vb.img");
        let restored = ankole(&[
            "backup",
            "restore",
            &place.backup("vb"),
            "--to-file",
            image.to_str().unwrap(),
        ]);
        assert_eq!(restored.status.code(), Some(0), "{restored:?}");
        let bytes = std::fs::read(image).unwrap();
        assert_eq!(bytes.len() as u64, VOLUME_BYTES);
        assert!(bytes.chunks(BLOCK_BYTES).zip([0, 0x20, 0x40, 0x60]).all(|(b, fill)| b[0] == fill));
    }
}

#[test]
fn a_backup_that_can_not_be_restored_here_is_shown_so() {
    let place = Place::with(&["va", "vb"]);
    as_longhorn(&place, "va");
    edit(&place.volume_manifest("va"), |json| json["BackingImageName"] = "\"debian\"".into());
    edit(&place.backup_manifest("vb"), |json| {
        json["Blocks"].as_array_mut().unwrap().pop();
    });
    let (table, remarks) = place.list("");
    assert!(table.contains("needs image") && table.contains("unreadable"), "{table}");
    assert!(remarks.contains("lists 3 blocks"), "{remarks}");
    let (shown, _) = texts(ankole(&["backup", "inspect", &place.backup("va")]));
    assert!(shown.contains("debian"), "{shown}");
    for volume in ["va", "vb"] {
        let image = place.object("image");
        let url = place.backup(volume);
        let restored = ankole(&["backup", "restore", &url, "--to-file", image.to_str().unwrap()]);
        assert_ne!(restored.status.code(), Some(0), "{restored:?}");
        assert!(!image.exists());
    }
}

/// Backing images, a folder too deep and an empty one were all the same empty table.
#[test]
fn an_empty_list_says_why() {
    let place = Place::with(&["va"]);
    let (_, remarks) = place.list("");
    assert_eq!(remarks, "");
    let (_, remarks) = place.list("/backupstore/volumes");
    assert!(remarks.contains(&format!("name the folder that holds it: {}", place.url())));

    let place = Place::new();
    let (_, remarks) = place.list("");
    assert!(remarks.contains("is empty"), "{remarks}");
    std::fs::write(place.object("notes.txt"), b"").unwrap();
    let (_, remarks) = place.list("");
    assert!(remarks.contains("no backup store; it holds other things (notes.txt)"), "{remarks}");
    std::fs::create_dir_all(place.object("backupstore/backing-images/backing-images/debian"))
        .unwrap();
    let (_, remarks) = place.list("");
    assert!(remarks.contains("1 backing images (debian)"), "{remarks}");
}

/// A file of somebody else among the folders, a FIFO or a link, ended or hung every verb.
#[test]
fn what_does_not_belong_into_a_store_hides_and_holds_nothing() {
    let place = Place::with(&["va", "vb"]);
    let volumes = place.object("backupstore/volumes");
    std::fs::write(volumes.join("notes.txt"), b"").unwrap();
    std::fs::write(volumes.join("zz"), b"").unwrap();
    std::os::unix::fs::symlink("/", volumes.join("yy")).unwrap();
    for path in [place.backup_manifest("va"), place.volume_manifest("vb")] {
        std::fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    }
    let (table, remarks) = place.list("");
    assert!(table.contains("va ") && table.contains("unreadable"), "{table}");
    assert!(table.contains("vb ") && table.contains("complete"), "{table}");
    assert_eq!(remarks.matches("a FIFO").count(), 1, "{remarks}");
    assert!(remarks.contains("volumes/yy: it is a link"), "{remarks}");
    for verb in ["verify", "inspect"] {
        let said = ankole(&["backup", verb, &place.backup("va")]);
        assert_eq!(said.status.code(), Some(1), "{said:?}");
    }
    let said = ankole(&["backup", "prune", "--target", &place.url()]);
    let (_, errors) = texts(said);
    assert!(errors.contains("volumes/yy"), "{errors}");
}

/// A damaged volume stopped the pruning of all that came after it.
#[test]
fn pruning_goes_on_after_a_volume_that_can_not_be() {
    let place = Place::with(&["va", "vb"]);
    as_longhorn(&place, "va");
    std::fs::write(place.volume_manifest("va"), b"").unwrap();
    let (lines, errors) = texts(ankole(&["backup", "prune", "--target", &place.url()]));
    assert_eq!(lines, "volume vb: 0 blocks removed, 4 are needed\n");
    assert!(errors.contains("/va/volume.cfg"), "{errors}");
}

/// Does what the lines after `next:` say, as somebody would who copies the commands. A question is
/// answered with yes.
fn follow(world: &World, said: &Said) {
    let next = said.err.lines().find_map(|line| line.strip_prefix("next: "));
    let next = next.unwrap_or_else(|| panic!("no next step in {said:?}"));
    let commands: Vec<_> =
        next.split("; ").filter_map(|step| Some(&step[step.find("ankole ")? + 7..])).collect();
    assert!(!commands.is_empty(), "{next}");
    for command in commands {
        let yes = if command.contains(" rm ") { "--yes" } else { "" };
        let script = format!("\"$0\" --data \"$1\" {command} {yes}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_ankole")]).arg(world.data());
        let output = shell.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}\n{}", world.log());
    }
}

fn only_block(target: &Path) -> PathBuf {
    let found = Command::new("find").arg(target).args(["-name", "*.blk"]).output().unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim().into()
}

/// "A new backup in mode full", "make it again", "say that it may be overwritten": no command could.
#[test]
fn what_is_said_to_do_next_can_be_done_and_helps() {
    let world = World::real();
    let create = ["volume", "create", "v1", "--size", "4MiB", "--replicas", "1"];
    world.well(&[&create[..], &["--frontend", "socket"]].concat());
    let endpoint = world.well(&["volume", "attach", "v1"]);
    let written = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write -P 7 0 4096", endpoint.trim()])
        .output()
        .expect("qemu-io is there: apt-get install qemu-utils");
    assert!(written.status.success(), "{written:?}");
    let folder = world.path().join("my backups");
    std::fs::create_dir(&folder).unwrap();
    let target = format!("file://{}/my%20backups", world.path().display());
    let first = world.well(&["backup", "create", "v1", "--target", &target]).trim().to_owned();

    // A block that has the right size and other bytes: only a full backup stores it anew.
    let block = only_block(&folder);
    let mut bytes = std::fs::read(&block).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&block, bytes).unwrap();
    let bad = world.say(&["backup", "verify", &first]);
    assert_eq!(bad.code, 1, "{bad:?}");
    follow(&world, &bad);
    world.well(&["backup", "verify", &first]);

    let missing = first.replace("backup-", "backup-x");
    follow(&world, &world.say(&["backup", "inspect", &missing]));

    // A maker that died.
    let paths = paths("v1");
    let stub = r#"{"Name":"b9","VolumeName":"v1","CreatedTime":""}"#;
    let stub_path = folder.join(paths.backup_manifest(&"b9".parse().unwrap()));
    std::fs::write(&stub_path, stub).unwrap();
    let unfinished = format!("{target}?backup=b9&volume=v1");
    follow(&world, &world.say(&["backup", "inspect", &unfinished]));
    assert!(!stub_path.exists());

    // A larger volume had the name: its snapshot stays, and is used once those backups are gone.
    edit(&folder.join(paths.volume_manifest()), |json| json["Size"] = "8388608".into());
    let refused = world.say(&["backup", "create", "v1", "--target", &target]);
    assert_eq!(refused.code, 4, "{refused:?}");
    for backup in world.well(&["backup", "ls", "--target", &target, "-o", "name"]).lines() {
        world.well(&["backup", "rm", backup, "--yes"]);
    }
    follow(&world, &refused);
}
