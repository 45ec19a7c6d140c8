//! Programs. Nothing here is needed to serve a volume.

use std::ffi::OsStr;

use ankole_api::node::{Area, Finding, Found};
use ankole_blockdev::program;

pub(super) fn look(search_path: &OsStr) -> impl Iterator<Item = Finding> {
    TOOLS.iter().map(move |tool| tool.look(search_path))
}

struct Tool {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const TOOLS: [Tool; 6] = [
    Tool { name: "mke2fs", package: "e2fsprogs", purpose: "make ext4, also in the demo" },
    Tool { name: "mkfs.xfs", package: "xfsprogs", purpose: "make XFS" },
    Tool { name: "cryptsetup", package: "cryptsetup-bin", purpose: "encrypt volumes (LUKS2)" },
    Tool { name: "nbdcopy", package: "libnbd-bin", purpose: "copy to and from a volume's socket" },
    Tool { name: "qemu-img", package: "qemu-utils", purpose: "import and export disk images" },
    Tool { name: "fio", package: "fio", purpose: "measure" },
];

impl Tool {
    fn look(&self, search_path: &OsStr) -> Finding {
        match program::find_in(search_path, self.name) {
            Some(path) => {
                Finding::new(Area::Tool, self.name, Found::Yes, path.display().to_string())
            }
            None => {
                let detail = format!("not found; would {}", self.purpose);
                Finding::new(Area::Tool, self.name, Found::Missing, detail)
                    .next(format!("apt-get install {}", self.package))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_is_missing_names_its_package() {
        let tool = Tool { name: "no-such-tool", package: "some-package", purpose: "x" };
        let finding = tool.look(OsStr::new("/nowhere"));
        assert_eq!(finding.found, Found::Missing);
        assert_eq!(finding.next.as_deref(), Some("apt-get install some-package"));
    }
}
