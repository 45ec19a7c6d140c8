//! Golden files of tests: what was agreed on, in `tests/golden/`. `UPDATE_GOLDEN=1` writes them
//! anew; the diff is then read by a person.

use std::fs;
use std::path::Path;

pub(crate) fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("it was joined")).unwrap();
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{} differs; this is what is now:\n{text}", path.display());
}
