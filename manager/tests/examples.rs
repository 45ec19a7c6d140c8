//! The examples of `--help`, typed as they are in the order of a volume's life.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::World;

/// They begin a process that goes on, ask for what isn't wrong here, or write where a test doesn't.
const NOT_RUN: [&str; 8] = [
    "demo",
    "standalone",
    "replica serve",
    "engine run",
    "volume salvage",
    "volume recover",
    "check",
    "volume create v1", // with the frontend that the node has, which may be a device of the kernel
];

/// The commands in the order in which their examples make sense.
const LIFE: [&str; 32] = [
    "check",
    "volume create",
    "volume ls",
    "volume attach",
    "volume show",
    "volume why",
    "volume resize",
    "snapshot create",
    "snapshot ls",
    "snapshot revert",
    "target add",
    "target ls",
    "backup create",
    "backup ls",
    "backup inspect",
    "backup verify",
    "backup restore",
    "backup rm",
    "backup prune",
    "backup unlock",
    "target rm",
    "snapshot rm",
    "node show",
    "replica ls",
    "replica inspect",
    "engine upgrade",
    "volume detach",
    "replica verify",
    "volume rm",
    "completion",
    "man",
    "version",
];

fn examples(world: &World, command: &str) -> Vec<String> {
    let words: Vec<_> = command.split(' ').chain(["--help"]).collect();
    let help = world.well(&words);
    let lines = help.lines().filter_map(|line| line.strip_prefix("  ankole "));
    lines.map(String::from).collect()
}

#[test]
fn the_examples_of_help_can_be_typed_as_they_are() {
    let mut world = World::real();
    let backups = world.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let create = ["volume", "create", "v1", "--size", "16MiB", "--frontend", "socket"];
    world.well(&create);
    let mut url = String::new();
    for command in LIFE {
        let lines = examples(&world, command);
        assert!(!lines.is_empty(), "{command} --help has no example");
        for line in lines {
            if NOT_RUN.iter().any(|not_run| line.starts_with(not_run)) {
                continue;
            }
            // What can't be known before, or isn't a place for tests.
            let line = line
                .replace("'file:///backups?backup=backup-1&volume=v1'", &url)
                .replace("file:///backups", &format!("file://{}", backups.display()))
                .replace("/usr/local/bin/ankole", env!("CARGO_BIN_EXE_ankole"))
                .replace("scratch --size 512MiB", "scratch --size 512MiB --frontend socket")
                .replace("v1.img", world.path().join("v1.img").to_str().unwrap())
                .replace("share/man", world.path().join("share/man").to_str().unwrap());
            let said = world.say(&line.split(' ').collect::<Vec<_>>());
            assert_eq!(said.code, 0, "ankole {line}: {said:?}");
            if command == "backup create" {
                url = said.out.trim().into();
            }
        }
    }
    world.stop();
}
