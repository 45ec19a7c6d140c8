//! Which crates of the control plane may see which others, as manager/README.md draws it. The
//! compiler keeps a wall only until somebody adds a dependency: it is added here, too, or refused.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;
use std::process::Command;

struct Room {
    name: &'static str,
    /// Crates of this repository that it may see.
    sees: &'static [&'static str],
    /// Crates of others that it may not.
    never: &'static [&'static str],
}

const HTTP: [&str; 4] = ["axum", "hyper", "kube", "ureq"];
const OUTSIDE: [&str; 6] = ["axum", "kube", "rustix", "tokio", "tracing", "ureq"];

const ROOMS: [Room; 7] = [
    Room { name: "ankole-whole-file", sees: &[], never: &OUTSIDE },
    // Only types of theirs, which are shown as they are.
    Room { name: "ankole-api", sees: &["ankole-blockdev", "ankole-replica"], never: &OUTSIDE },
    Room {
        name: "ankole-plan",
        sees: &["ankole-api", "ankole-blockdev", "ankole-replica"],
        never: &OUTSIDE,
    },
    Room {
        name: "ankole-store",
        sees: &["ankole-api", "ankole-replica", "ankole-whole-file"],
        never: &["axum", "ureq"],
    },
    Room {
        name: "ankole-agent",
        sees: &[
            "ankole-api",
            "ankole-blockdev",
            "ankole-plan",
            "ankole-replica",
            "ankole-store",
            "ankole-whole-file",
        ],
        never: &HTTP,
    },
    Room {
        name: "ankole-client",
        sees: &["ankole-api", "ankole-blockdev", "ankole-replica"],
        never: &["axum", "kube", "tokio"],
    },
    Room {
        name: "ankole-demo",
        sees: &["ankole-agent", "ankole-api", "ankole-blockdev", "ankole-client"],
        never: &HTTP,
    },
];

/// Of each crate in `manager/` but the binary's: what it depends on, tests aside.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let manager = env!("CARGO_MANIFEST_DIR");
    let told = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(manager)
        .output()
        .expect("cargo runs this test");
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    let packages = told["packages"].as_array().unwrap().iter();
    let rooms = packages.filter(|package| {
        let path = package["manifest_path"].as_str().unwrap();
        path.starts_with(&format!("{manager}/")) && package["name"] != "ankole"
    });
    let named = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    rooms
        .map(|package| {
            let all = package["dependencies"].as_array().unwrap().iter();
            let used = all.filter(|dependency| dependency["kind"] != "dev");
            (named(package), used.map(named).collect())
        })
        .collect()
}

#[test]
fn a_crate_sees_those_below_it_and_no_other() {
    let rooms = dependencies();
    assert!(rooms.len() > 4, "{rooms:?}");
    for (name, dependencies) in rooms {
        let room = ROOMS.iter().find(|room| room.name == name);
        let room = room.unwrap_or_else(|| panic!("{name} is new: say here what it may see"));
        for dependency in dependencies {
            let dependency = dependency.as_str();
            let is_ours = dependency.starts_with("ankole");
            let may = if is_ours {
                room.sees.contains(&dependency)
            } else {
                !room.never.contains(&dependency)
            };
            assert!(may, "{name} may not see {dependency}");
        }
    }
}
