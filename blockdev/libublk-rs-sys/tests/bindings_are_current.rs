//! Compares the bindings with the header that they were made from, by asking the C compiler.
//!
//! The bindings carry their own sizes and offsets as constant assertions, which rustc checks when
//! it compiles them. Here each of these numbers, and each constant, becomes a `_Static_assert` on
//! the header's side. So a header that was replaced without `regenerate` fails, as does a slip of
//! the generator; libclang isn't needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const BINDINGS: &str = include_str!("../src/bindings.rs");
const HEADER: &str = include_str!("../ublk_cmd.h");

/// `["Size of T"][size_of::<T>() - N]`, `["Offset of field: T::f"][offset_of!(T, f) - N]`.
fn layout_assertions() -> Vec<String> {
    let mut asserts = Vec::new();
    for assertion in BINDINGS.split("[\"").skip(1) {
        let (label, rest) = assertion.split_once("\"]").expect("a label ends");
        let (_, rest) = rest.split_once(" - ").expect("an assertion subtracts");
        let (number, _) = rest.split_once("usize]").expect("a size");
        let (what, of) = label.rsplit_once(' ').expect("a label has words");
        asserts.push(match what {
            "Size of" => format!("sizeof(struct {of}) == {number}"),
            "Alignment of" => format!("_Alignof(struct {of}) == {number}"),
            "Offset of field:" => {
                let (structure, field) = of.split_once("::").expect("a field belongs to a struct");
                // A union without a name in C, whose members the compiler knows by themselves.
                if field.starts_with("__bindgen") {
                    continue;
                }
                format!("offsetof(struct {structure}, {field}) == {number}")
            }
            other => panic!("a kind of assertion that this test doesn't know: {other}"),
        });
    }
    asserts
}

/// Names and values of the constants that the bindings have.
fn constants() -> Vec<(&'static str, &'static str)> {
    let line = |line: &'static str| {
        let (name, rest) = line.strip_prefix("pub const ")?.split_once(": ")?;
        Some((name, rest.split_once("= ")?.1.trim_end_matches(';')))
    };
    BINDINGS.lines().filter_map(line).collect()
}

/// A field at another offset is silent corruption: the kernel would read one number as another.
#[test]
fn bindings_agree_with_the_c_compiler_about_the_header() {
    let constants = constants();
    let layouts = layout_assertions();
    assert!(constants.len() > 100 && layouts.len() > 100, "the bindings were not understood");

    let mut source = String::from("#include <stddef.h>\n#include \"bindings.h\"\n");
    for assertion in layouts {
        source += &format!("_Static_assert({assertion}, \"{assertion}\");\n");
    }
    for (name, value) in constants {
        source += &format!("_Static_assert(({name}) == {value}LL, \"{name} is {value}\");\n");
    }

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("current.c");
    fs::write(&file, source).unwrap();
    let compiler = Command::new("cc")
        .args(["-std=c11", "-fsyntax-only", "-I", env!("CARGO_MANIFEST_DIR")])
        .arg(&file)
        .output()
        .expect("cc is needed, as it is for linking (Debian: gcc)");
    let complaints = String::from_utf8_lossy(&compiler.stderr);
    assert!(compiler.status.success(), "run `regenerate`; the header disagrees:\n{complaints}");
}

/// The comparison above sees only what the bindings have. A newer header with a new command would
/// pass it.
#[test]
fn every_definition_of_the_header_is_in_the_bindings() {
    let bound: BTreeSet<&str> = constants().into_iter().map(|(name, _)| name).collect();
    for line in HEADER.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("#define"), Some(name), Some(_)) if name.starts_with("UBLK") => {
                // A macro with arguments has no value.
                assert!(name.contains('(') || bound.contains(name), "{name}: run `regenerate`");
            }
            (Some("struct"), Some(name), Some("{")) => {
                let declared = format!("pub struct {name} {{");
                assert!(BINDINGS.contains(&declared), "struct {name}: run `regenerate`");
            }
            _ => {}
        }
    }
}

/// A build script would bring bindgen back to every user's machine.
#[test]
fn crate_has_no_build_script() {
    assert!(!Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs").exists());
}
