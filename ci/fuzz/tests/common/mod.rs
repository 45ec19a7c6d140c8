//! The corpus, which is checked in.

use std::path::Path;

/// Every file of a target's corpus; one that went missing is a failure.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = std::fs::read_dir(&folder).expect("every target has a corpus");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("the folder can be read").path();
        std::fs::read(path).expect("the file can be read")
    };
    let inputs: Vec<_> = files.map(read).collect();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}

/// Runs `target` over every file of its corpus.
pub fn over_corpus(name: &str, target: fn(&[u8])) {
    for input in corpus(name) {
        target(&input);
    }
}
