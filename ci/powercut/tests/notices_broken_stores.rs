//! The program must notice a store that loses data; otherwise its silence says nothing.

use std::process::{Command, Output};

fn powercut(arguments: &[&str]) -> Output {
    let kept = tempfile::tempdir().expect("a folder");
    let scratch = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_powercut"));
    command.args(["recorded", "--stop-at-first", "--losses", "0", "--requests", "300"]);
    command.arg("--dir").arg(kept.path()).arg("--scratch").arg(scratch.path());
    let output = command.args(arguments).output().expect("it runs");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn has_found(output: &Output, what: &str) -> bool {
    let text = String::from_utf8_lossy(&output.stdout);
    !output.status.success() && text.contains("FAILED: seed") && text.contains(what)
}

/// What a store without `fdatasync` promises is lost at the first cut that drops a sector.
#[test]
fn a_store_without_fdatasync_is_caught_within_a_few_cuts() {
    let output =
        powercut(&["--seed", "1", "--cuts", "10", "--together-every", "0", "--without-sync"]);
    assert!(has_found(&output, "alone: "), "nothing was found");
}

/// The files of a new layer are there, but a power cut takes their names.
#[test]
fn a_store_without_fsync_of_its_directory_is_caught() {
    let arguments = [
        "--seed",
        "1",
        "--runs",
        "4",
        "--cuts",
        "40",
        "--together-every",
        "0",
        "--without-dir-sync",
    ];
    let output = powercut(&arguments);
    assert!(has_found(&output, "it is missing"), "nothing was found");
}

#[test]
fn a_sound_store_passes() {
    let output = powercut(&["--cuts", "10"]);
    assert!(output.status.success(), "a cut lost something, see above");
}
