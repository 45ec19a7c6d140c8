//! A process that is killed while it writes.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::{LAMP, block_on, create, lumen, open, path_in};
use crate::{Selector, Store};

const PATH: &str = "ANKOLE_TEST_STORE";

/// What it printed was answered, so it must be there; nothing else may be half there.
#[test]
fn what_was_answered_before_a_kill_is_there_after_it() {
    for (round, lines) in [1, 7, 40, 150].into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(&folder);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("embedded::tests::crash::writes_until_it_is_killed")
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut answered = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some((_, told)) = line.split_once("answered ") {
                answered.push(told.to_owned());
            }
            if answered.len() == lines {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(answered.len() >= lines, "{answered:?}");
        let store = open(&path);
        block_on(async {
            for told in &answered {
                let (name, value) = told.split_once(' ').unwrap();
                let is = lumen(&store, name).await;
                assert_eq!(is, Some(value.parse().unwrap()), "{name} in round {round}");
            }
            create(&store, "after", 1).await;
            let all = store.list_raw(LAMP, &Selector::all()).await.unwrap();
            assert_eq!(all.unreadable, []);
        });
    }
}

#[test]
#[ignore = "it is a process of the test above"]
fn writes_until_it_is_killed() {
    let store = Arc::new(open(std::env::var_os(PATH).unwrap().as_ref()));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                block_on(async {
                    for number in 0..10_000 {
                        let name = format!("l{writer}-{number}");
                        create(&store, &name, number).await;
                        println!("answered {name} {number}");
                    }
                });
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}
