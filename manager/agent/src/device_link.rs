//! /dev/ankole/VOLUME: a name of the device that stays the same, whatever its number is.
//!
//! What may never happen: that it leads to another volume's device. The kernel gives the number of a
//! device that has gone to the next one.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// On the node's own /dev.
pub const FOLDER: &str = "/dev/ankole";

/// A link to a volume's device. It stays when this process dies, as the device does.
#[derive(Debug)]
pub struct Link {
    path: PathBuf,
    device: PathBuf,
}

impl Link {
    /// Takes the place of a link that leads nowhere or to `device`; one to another device that
    /// exists is somebody else's, and left alone. Links of other volumes to `device` are what an
    /// earlier device of that number has left: they go.
    pub fn make(folder: &Path, volume: &str, device: &Path) -> io::Result<Self> {
        let (path, device) = (folder.join(volume), device.to_owned());
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let other = entry?.path();
            if other != path && leads_to(&other, &device) {
                remove_if_there(&other)?;
            }
        }
        if let Ok(target) = fs::read_link(&path)
            && target != device
            && fs::exists(&target)?
        {
            let message = format!("{} leads to {}", path.display(), target.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        let fresh = folder.join(format!(".{volume}.new"));
        remove_if_there(&fresh)?;
        symlink(&device, &fresh)?;
        fs::rename(&fresh, &path)?;
        Ok(Self { path, device })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unless it leads elsewhere meanwhile.
    pub fn remove(self) -> io::Result<()> {
        if leads_to(&self.path, &self.device) { remove_if_there(&self.path) } else { Ok(()) }
    }
}

/// For a supervisor that stops a device whose engine doesn't come back. Unless it leads elsewhere.
pub fn remove(folder: &Path, volume: &str, device: &Path) -> io::Result<()> {
    Link { path: folder.join(volume), device: device.to_owned() }.remove()
}

fn leads_to(link: &Path, device: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target == device)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_the_newest_device_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("ublkb0"), folder.path().join("ublkb7"));
        let links = folder.path().join("ankole");
        let left_behind = Link::make(&links, "v1", &old).unwrap();
        let link = Link::make(&links, "v1", &new).unwrap();
        assert_eq!(fs::read_link(link.path()).unwrap(), new);
        left_behind.remove().unwrap();
        assert!(fs::read_link(link.path()).is_ok(), "it isn't the old one's any more");
        link.remove().unwrap();
        assert_eq!(fs::read_dir(&links).unwrap().count(), 0);
    }

    /// An engine was killed and its device stopped; the next volume got its number, and the first
    /// one's link led to it.
    #[test]
    fn no_link_of_another_volume_leads_to_a_new_device() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("ublkb0");
        let links = folder.path().join("ankole");
        let old = Link::make(&links, "v1", &device).unwrap();
        let new = Link::make(&links, "v2", &device).unwrap();
        assert!(fs::read_link(old.path()).is_err(), "v1 shows what v2 has");
        old.remove().unwrap();
        remove(&links, "v2", &folder.path().join("ublkb1")).unwrap();
        assert_eq!(fs::read_link(new.path()).unwrap(), device);
        remove(&links, "v2", &device).unwrap();
        assert_eq!(fs::read_dir(&links).unwrap().count(), 0);
    }

    /// Two standalones on one machine may each have a volume of that name.
    #[test]
    fn a_link_to_a_device_that_exists_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let others = folder.path().join("ublkb0");
        fs::write(&others, "").unwrap();
        let theirs = Link::make(folder.path(), "v1", &others).unwrap();
        let error = Link::make(folder.path(), "v1", Path::new("/dev/ublkb7")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_link(theirs.path()).unwrap(), others);
    }
}
