//! A node's record in open-iscsi's database, for the one setting that `iscsiadm` takes as an argument
//! only and that nobody may see there: any user can read the arguments of a running program.
//!
//! ```text
//! DATABASE/nodes/TARGET/127.0.0.1,PORT              lines `name = value`, 0600
//! DATABASE/nodes/TARGET/127.0.0.1,PORT,GROUP/IFACE  the same, where a group of portals is known
//! ```

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Of open-iscsi until 2.1.8, and since.
const DATABASES: [&str; 2] = ["/etc/iscsi", "/var/lib/iscsi"];

const SECRET: &str = "node.session.auth.password";

/// Puts the secret into the record of a target that `iscsiadm` has made.
pub(super) fn set_secret(target: &str, portal: (&str, u16), secret: &str) -> io::Result<()> {
    let databases = DATABASES.map(Path::new);
    let path = find(&databases, target, portal)?.ok_or_else(|| {
        let text = format!("no record of it lies in {}", DATABASES.join(" or "));
        io::Error::new(io::ErrorKind::NotFound, text)
    })?;
    let text = with_setting(&fs::read_to_string(&path)?, SECRET, secret);
    let draft = path.with_file_name("record.new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&draft)?.write_all(text.as_bytes())?;
    fs::rename(draft, path)
}

fn find(
    databases: &[&Path],
    target: &str,
    (address, port): (&str, u16),
) -> io::Result<Option<PathBuf>> {
    for database in databases {
        let folder = database.join("nodes").join(target);
        let portals = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            portals => portals?,
        };
        for portal in portals {
            let portal = portal?.path();
            let name = portal.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let mut parts = name.split(',');
            if (parts.next(), parts.next()) != (Some(address), Some(&*port.to_string())) {
                continue;
            }
            if !portal.is_dir() {
                return Ok(Some(portal));
            }
            if let Some(record) = fs::read_dir(portal)?.next() {
                return Ok(Some(record?.path()));
            }
        }
    }
    Ok(None)
}

/// The record with this setting instead of the one it had.
fn with_setting(record: &str, name: &str, value: &str) -> String {
    let is_it = |line: &&str| line.split('=').next().is_some_and(|found| found.trim() == name);
    let is_end = |line: &&str| line.starts_with("# END RECORD");
    let kept: Vec<_> = record.lines().filter(|line| !is_it(line)).collect();
    let end = kept.iter().position(is_end).unwrap_or(kept.len());
    let setting = format!("{name} = {value}");
    let lines = kept[..end].iter().copied().chain([&*setting]).chain(kept[end..].iter().copied());
    lines.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_takes_the_place_of_the_one_that_was_there() {
        let record = "# BEGIN RECORD 2.1.8\nnode.name = iqn.x\n\
                      node.session.auth.password = old\n\
                      node.session.auth.password_in = other\n# END RECORD\n";
        let expected = "# BEGIN RECORD 2.1.8\nnode.name = iqn.x\n\
                        node.session.auth.password_in = other\n\
                        node.session.auth.password = new\n# END RECORD\n";
        assert_eq!(with_setting(record, SECRET, "new"), expected);
        assert_eq!(with_setting(expected, SECRET, "new"), expected);
        assert_eq!(with_setting("", SECRET, "new"), format!("{SECRET} = new\n"));
    }

    #[test]
    fn a_record_is_found_in_either_database_and_shape() {
        let folder = tempfile::tempdir().unwrap();
        let databases = [folder.path().join("a"), folder.path().join("b")];
        let known = databases.each_ref().map(PathBuf::as_path);
        let look = |port| find(&known, "iqn.x:v1", ("127.0.0.1", port)).unwrap();
        assert_eq!(look(3260), None);
        let [flat, deep] = databases.each_ref().map(|database| database.join("nodes/iqn.x:v1"));
        fs::create_dir_all(&flat).unwrap();
        fs::write(flat.join("127.0.0.1,32601"), "").unwrap();
        fs::write(flat.join("127.0.0.1,3260"), "").unwrap();
        fs::create_dir_all(deep.join("127.0.0.1,3261,1")).unwrap();
        fs::write(deep.join("127.0.0.1,3261,1/default"), "").unwrap();
        assert_eq!(look(3260), Some(flat.join("127.0.0.1,3260")));
        assert_eq!(look(3261), Some(deep.join("127.0.0.1,3261,1/default")));
        assert_eq!(look(3262), None);
    }
}
