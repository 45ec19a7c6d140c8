//! The command line and the API against a real `ankole standalone`: what users do wrong, and what
//! they are told. Nothing here needs an engine.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use common::World;
use rustix::process::Signal;

/// Each error: exit code, and words of the message and of the next step.
#[test]
fn what_is_wrong_is_named_with_its_cause_and_the_next_step() {
    let world = World::real();
    let place = format!("file://{}", world.path().display());
    world.well(&["target", "add", "default", &place]);
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["volume", "create", "v1"], 2, &["--size"]),
        (&["volume", "create", "v1", "--size", "0"], 2, &["size 0"]),
        (&["volume", "create", "v1", "--size", "NaN"], 2, &["NaN", "512MiB"]),
        (&["volume", "create", "v1", "--size=-1G"], 2, &["-1G"]),
        (&["volume", "create", "v1", "--size", "-1"], 2, &["\"-1\" isn't a size", "512MiB"]),
        (&["volume", "describe", "v9"], 3, &["volume v9 doesn't exist"]),
        (&["volume", "get", "v9"], 3, &["volume v9 doesn't exist"]),
        (&["volume", "delete", "v9", "--yes"], 3, &["v9"]),
        (&["target", "remove", "t"], 3, &["target t doesn't exist"]),
        (&["snapshot", "list", "v9"], 3, &["v9"]),
        (&["volume", "create", "v1", "--size", "65TiB"], 2, &["64 TiB"]),
        (&["volume", "create", "v1", "--size", "1GB"], 2, &["GiB"]),
        (&["volume", "create", "V1", "--size", "1G"], 2, &["'V'", "a-z"]),
        (&["volume", "create", "../v", "--size", "1G"], 2, &["'.'"]),
        (&["volume", "create", "c", "--size", "1G"], 2, &["backed up", "2 characters"]),
        (&["volume", "create", "v1", "--size", "1G", "--replicas", "0"], 2, &["v1", "0 replicas"]),
        (&["volume", "create", "v1", "--size", "1G", "--frontend", "fuse"], 2, &["fuse", "tgt"]),
        (&["volume", "show", "v9"], 3, &["volume v9 doesn't exist", "volume ls"]),
        (&["volume", "attach", "v9"], 3, &["v9"]),
        (&["volume", "detach", "v9"], 3, &["v9"]),
        (&["volume", "resize", "v9", "--size", "1G"], 3, &["v9"]),
        (&["volume", "rm", "v9", "--yes"], 3, &["v9"]),
        (&["snapshot", "ls", "v9"], 3, &["v9"]),
        (&["snapshot", "rm", "v9", "s1"], 4, &["s1", "--yes"]),
        (&["replica", "ls", "v9"], 3, &["v9"]),
        (&["backup", "create", "v9"], 3, &["v9"]),
        (&["backup", "rm", "file:///b?backup=b&volume=v"], 4, &["--yes"]),
        (&["backup", "restore", "file:///b?backup=b&volume=v"], 2, &["--to"]),
        (&["target", "add", "t", "s3://bucket@region/"], 2, &["isn't a target", "file:///"]),
        (&["target", "add", "default", "file:///other"], 4, &["default exists"]),
        (&["target", "add", "t", "file:///does-not-exist"], 1, &["/does-not-exist", "mount it"]),
        (&["target", "add", "t", "file:///proc"], 1, &["/proc", "another place"]),
        (&["target", "rm", "t"], 3, &["target t doesn't exist"]),
        (&["volume", "frobnicate"], 2, &["frobnicate"]),
    ];
    for (args, code, words) in cases {
        let said = world.say(args);
        assert_eq!(said.code, *code, "{args:?}: {said:?}");
        assert_eq!(said.out, "", "{args:?}: stdout is for answers");
        for word in *words {
            assert!(said.err.contains(word), "{args:?} doesn't say {word:?}: {}", said.err);
        }
    }
}

#[test]
fn lists_are_tables_json_or_bare_names() {
    let world = World::real();
    assert_eq!(world.json(&["volume", "ls"]), serde_json::json!([]));
    let columns = "NAME  STATE  ROBUSTNESS  SIZE  USED  REPLICAS  NOTES  ENDPOINT\n";
    assert_eq!(world.well(&["volume", "ls"]), columns);
    assert_eq!(world.well(&["volume", "ls", "--no-headers"]), "");
    let place = format!("file://{}", world.path().display());
    world.well(&["target", "add", "t1", &place]);
    world.well(&["target", "add", "t1", &place]); // the same again is fine
    assert_eq!(world.well(&["target", "ls"]), format!("NAME  URL\nt1    {place}\n"));
    assert_eq!(world.well(&["target", "ls", "-o", "name"]), "t1\n");
    assert_eq!(world.json(&["target", "ls"])[0]["url"], place);
    world.well(&["target", "rm", "t1"]);
    assert_eq!(world.well(&["target", "ls", "-o", "name"]), "");
}

/// The walk of the README names neither a server nor a data folder. Port 9500 may be taken where
/// the tests run, so here the address is given; the token isn't.
#[test]
fn the_token_is_found_by_the_address_alone() {
    let world = World::real();
    let address = fs::read_to_string(world.data().join("run/api.addr")).unwrap();
    let run = |runtime_folder: &std::path::Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ankole"));
        command.env_remove("ANKOLE_TOKEN").env_remove("ANKOLE_DATA").stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", runtime_folder);
        command.args(["volume", "ls", "--server", address.trim()]).output().unwrap()
    };
    assert!(run(world.path()).status.success());
    let other_user = run(&world.path().join("elsewhere"));
    assert_eq!(other_user.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other_user.stderr).contains("ANKOLE_TOKEN"));
}

#[test]
fn without_the_token_nothing_is_answered() {
    let world = World::real();
    let address = fs::read_to_string(world.data().join("run/api.addr")).unwrap();
    let said = list_at(address.trim(), "wrong");
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stderr).contains("another token"));
    let answer = speak(&world, b"GET /v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains(r#""kind":"unauthorized""#), "{answer}");
}

fn list_at(address: &str, token: &str) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ankole"));
    command.env("ANKOLE_TOKEN", token).env("XDG_RUNTIME_DIR", "/nowhere").stdin(Stdio::null());
    command.args(["volume", "ls", "--server", address]).output().unwrap()
}

/// After a crash the port is free for whoever takes it. The command line sent the token there, which
/// is root's: it allows to run programs.
#[test]
fn a_stranger_on_the_port_is_sent_no_token() {
    let mut world = World::real();
    let address = fs::read_to_string(world.data().join("run/api.addr")).unwrap();
    let token = fs::read_to_string(world.data().join("token")).unwrap();
    let said = list_at(address.trim(), token.trim());
    assert!(said.status.success(), "the server itself is believed: {said:?}");
    world.signal(Signal::KILL);
    world.wait();
    let stranger = std::net::TcpListener::bind(address.trim()).unwrap();
    let heard = std::thread::spawn(move || {
        let mut heard = Vec::new();
        for connection in stranger.incoming().take(2) {
            let mut connection = connection.unwrap();
            connection.set_read_timeout(Some(common::SOON)).unwrap();
            let mut part = [0; 4096];
            let count = connection.read(&mut part).unwrap_or(0);
            heard.extend_from_slice(&part[..count]);
            let body = r#"{"proof":"00"}"#;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = connection.write_all(answer.as_bytes());
        }
        String::from_utf8_lossy(&heard).into_owned()
    });
    let told = list_at(address.trim(), token.trim());
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&told.stderr).contains("another token"), "{told:?}");
    // With the data folder it is asked at the socket only, where nobody is.
    let told = world.say(&["volume", "ls"]);
    assert!(told.err.contains("no ankole runs"), "{}", told.err);
    let _ = TcpStream::connect(address.trim()); // the stranger need not wait for a second one
    let heard = heard.join().unwrap();
    assert!(heard.contains("/v1/proof"), "{heard}");
    assert!(!heard.contains(token.trim()), "{heard}");
}

/// Errors of the API are JSON too, also those that no handler has seen.
#[test]
fn garbage_on_the_api_is_answered_and_the_server_goes_on() {
    let world = World::real();
    let token = fs::read_to_string(world.data().join("token")).unwrap();
    let request = |line: &str, body: &str| {
        let (token, length) = (token.trim(), body.len());
        let text = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        speak(&world, text.as_bytes())
    };
    let cases = [
        ("POST /v1/volumes", "{]", "400", "invalid"),
        ("POST /v1/volumes", r#"{"name":"v1","sizeBytes":"many"}"#, "400", "invalid"),
        ("POST /v1/volumes", r#"{"name":"v1","sizeBytes":1,"colour":"red"}"#, "400", "colour"),
        ("POST /v1/volumes", r#"{"name":"../v","sizeBytes":1}"#, "400", "invalid"),
        ("GET /v1/volumes/%2e%2e%2f", "", "400", "invalid"),
        ("GET /v1/jobs/one", "", "400", "invalid"),
        ("GET /v1/jobs/1", "", "404", "notFound"),
        ("GET /v2/everything", "", "404", "notFound"),
        ("PATCH /v1/volumes", "", "405", "invalid"),
    ];
    for (line, body, status, word) in cases {
        let answer = request(line, body);
        let (head, json) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status_of_405 = if status == "405" { "400" } else { status };
        assert!(head.starts_with(&format!("HTTP/1.1 {status_of_405}")), "{line}: {answer}");
        assert!(json.contains(word) && json.contains(r#""message":"#), "{line}: {answer}");
    }
    let too_long = request("POST /v1/volumes", &"x".repeat(2 << 20));
    assert!(!too_long.starts_with("HTTP/1.1 2"), "{too_long}");
    speak(&world, b"\x16\x03\x01 this is TLS\r\n\r\n");
    world.well(&["volume", "ls"]);
}

fn speak(world: &World, bytes: &[u8]) -> String {
    let address = fs::read_to_string(world.data().join("run/api.addr")).unwrap();
    let mut connection = TcpStream::connect(address.trim()).unwrap();
    connection.set_read_timeout(Some(common::SOON)).unwrap();
    // The server may close before it has read everything.
    let _ = connection.write_all(bytes);
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into()
}

#[test]
fn a_port_in_use_and_an_address_for_others_are_refused() {
    let world = World::real();
    let address = fs::read_to_string(world.data().join("run/api.addr")).unwrap();
    let other = tempfile::tempdir().unwrap();
    let start = |address: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ankole"));
        command.env("XDG_RUNTIME_DIR", world.path()).arg("--data").arg(other.path().join("d"));
        command.args(["standalone", "--listen", address]).output().unwrap()
    };
    let in_use = start(address.trim());
    assert_eq!(in_use.status.code(), Some(1));
    let said = String::from_utf8_lossy(&in_use.stderr).into_owned();
    assert!(said.contains(address.trim()) && said.contains("--listen"), "{said}");
    let open = start("0.0.0.0:0");
    assert_eq!(open.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&open.stderr).contains("0.0.0.0:0"));
    world.well(&["volume", "ls"]);
}

#[test]
fn sigterm_ends_it_as_ctrl_c_does_and_takes_its_address_back() {
    let mut world = World::real();
    let address = world.data().join("run/api.addr");
    assert!(address.exists());
    world.signal(Signal::TERM);
    assert_eq!(world.wait().code(), Some(0));
    assert!(!address.exists());
    let said = world.say(&["volume", "ls"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("ankole standalone --data"), "{}", said.err);
    world.start();
}

#[test]
fn check_finds_the_socket_and_says_what_to_do_about_the_rest() {
    let world = World::real();
    let said = world.say(&["check", "-o", "json"]);
    assert!(matches!(said.code, 0 | 6), "{said:?}");
    let findings: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let findings = findings.as_array().unwrap();
    assert!(findings.iter().any(|f| f["name"] == "socket" && f["found"] == "yes"));
    let problem = findings.iter().any(|f| f["found"] == "problem");
    assert_eq!(said.code == 6, problem);
    for finding in findings {
        assert!(finding["found"] == "yes" || finding["next"].is_string(), "{finding}");
    }
}

#[test]
fn version_and_completions_need_no_server() {
    let world = World::real();
    assert_eq!(world.well(&["version"]), format!("ankole {}\n", ankole_replica::VERSION));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(world.well(&["completion", shell]).contains("COMPLETE"), "{shell}");
    }
}

/// A terminal is another case than a pipe: every command began with a library's complaint there, and
/// a debug build ended by it.
#[test]
fn on_a_terminal_commands_say_what_they_say_elsewhere() {
    let world = World::real();
    let binary = env!("CARGO_BIN_EXE_ankole");
    let data = world.data();
    for (args, expected) in
        [("volume ls", "NAME  STATE"), ("volume show v9", "volume v9 doesn't exist")]
    {
        let command = format!("{binary} --data {} {args}", data.display());
        let said = Command::new("script").args(["-qec", &command, "/dev/null"]).output();
        let said = said.expect("script is there: apt-get install bsdutils");
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(text.contains(expected), "{text}");
        assert_eq!(
            text.trim_end().lines().count(),
            if args == "volume ls" { 1 } else { 2 },
            "{text}"
        );
    }
}

/// What a shell with the script offers for the last word.
fn completed(world: &World, words: &[&str]) -> Vec<String> {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_ankole"));
    let path = format!("{}:/usr/bin:/bin", binary.parent().unwrap().display());
    let script = r#"
        source <(ankole completion bash)
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
        _clap_complete_ankole ankole "${COMP_WORDS[COMP_CWORD]}" 2>/dev/null
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut shell = Command::new("bash");
    shell.args(["-c", script, "bash"]).args(words);
    shell.env("PATH", path).env("ANKOLE_DATA", world.data()).env_remove("ANKOLE_SERVER");
    let said = shell.output().expect("bash is there");
    let text = String::from_utf8(said.stdout).unwrap();
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Only commands and options were known.
#[test]
fn a_shell_completes_names_that_the_server_knows() {
    let mut world = World::real();
    for name in ["alpha", "alps", "beta"] {
        world.well(&["volume", "create", name, "--size", "2MiB", "--frontend", "socket"]);
    }
    world.well(&["volume", "attach", "beta"]);
    world.well(&["snapshot", "create", "beta", "monday"]);
    let place = format!("file://{}", world.path().display());
    world.well(&["target", "add", "cellar", &place]);
    let cases: [(&[&str], &[&str]); 6] = [
        (&["ankole", "volume", "show", "al"], &["alpha", "alps"]),
        (&["ankole", "volume", "delete", "b"], &["beta"]),
        (&["ankole", "volume", "des"], &["describe"]),
        (&["ankole", "snapshot", "rm", "beta", "m"], &["monday"]),
        (&["ankole", "snapshot", "rm", "alpha", "m"], &[]),
        (&["ankole", "backup", "create", "beta", "--target", "c"], &["cellar"]),
    ];
    for (words, expected) in cases {
        assert_eq!(completed(&world, words), expected, "{words:?}");
    }
    assert_eq!(world.volume("alpha")["state"], "detached", "asking for its snapshots attaches it");
    world.stop();
    assert_eq!(completed(&world, &["ankole", "volume", "show", "al"]), [""; 0]);
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let world = World::real();
    assert!(world.well(&["man"]).contains(".TH ankole 1"));
    let folder = world.path().join("man/man1");
    world.well(&["man", folder.to_str().unwrap()]);
    for page in ["ankole.1", "ankole-volume-create.1", "ankole-backup-restore.1"] {
        let text = fs::read_to_string(folder.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    let text = fs::read_to_string(folder.join("ankole-volume-create.1")).unwrap();
    assert!(text.contains("ankole volume create v1"), "its examples: {text}");
}

#[test]
fn a_terminal_has_colours_and_nothing_else_has() {
    let world = World::real();
    world.well(&["volume", "create", "v1", "--size", "2MiB", "--frontend", "socket"]);
    world.well(&["volume", "attach", "v1", "--wait"]);
    let on_terminal = |variable: &str| {
        let data = world.data();
        let binary = env!("CARGO_BIN_EXE_ankole");
        let command = format!("{variable} {binary} --data {} volume ls", data.display());
        let said = Command::new("script").args(["-qec", &command, "/dev/null"]).output();
        String::from_utf8(said.expect("script is there: apt-get install bsdutils").stdout).unwrap()
    };
    assert!(on_terminal("env -u NO_COLOR TERM=xterm").contains("\u{1b}[32mhealthy\u{1b}[0m"));
    for plain in ["env NO_COLOR=1 TERM=xterm", "env -u NO_COLOR TERM=dumb"] {
        let text = on_terminal(plain);
        assert!(text.contains("healthy") && !text.contains('\u{1b}'), "{plain}: {text:?}");
    }
    assert!(!world.well(&["volume", "ls"]).contains('\u{1b}'));
}

/// Nothing said what a volume or all of them take.
#[test]
fn what_volumes_take_of_the_disks_is_shown() {
    let mut world = World::real();
    world.well(&["volume", "create", "v1", "--size", "64MiB", "--frontend", "socket"]);
    let volume = common::until("it is counted", || {
        let volume = world.volume("v1");
        volume["replicas"][2]["usedBytes"].is_u64().then_some(volume)
    });
    let used: u64 = (0..3).map(|it| volume["replicas"][it]["usedBytes"].as_u64().unwrap()).sum();
    assert!(used > 0 && used < 64 << 20, "{used}");
    assert!(world.well(&["volume", "ls"]).contains(" MiB"));
    let node = world.json(&["node", "show"]);
    let disk = &node["disks"][0];
    assert_eq!((disk["usedBytes"].as_u64(), disk["replicas"].as_u64()), (Some(used), Some(3)));
    assert!(disk["freeBytes"].as_u64() < disk["capacityBytes"].as_u64(), "{disk}");
    let table = world.well(&["node", "show"]);
    assert!(table.starts_with("DISK") && table.contains("FRONTEND"), "{table}");
    world.stop();
}
