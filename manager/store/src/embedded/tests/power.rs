//! A power cut: what wasn't synced is gone.

use std::fs;
use std::io;
use std::sync::Mutex;

use redb::StorageBackend;

use super::super::disk::DiskFile;
use super::super::writer::{Outside, attach};
use super::super::{EmbeddedStore, Verified, verify};
use super::{LAMP, create, path_in, replace};

/// The file has what was synced; the rest waits here.
#[derive(Debug)]
struct Held {
    disk: DiskFile,
    waiting: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)?;
        let end = offset + out.len() as u64;
        for (at, data) in self.waiting.lock().unwrap().iter() {
            let (from, to) = (offset.max(*at), end.min(at + data.len() as u64));
            if from < to {
                let [a, b, c, d] = [from - offset, to - offset, from - at, to - at];
                out[a as usize..b as usize].copy_from_slice(&data[c as usize..d as usize]);
            }
        }
        Ok(())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.set_len(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        for (offset, data) in self.waiting.lock().unwrap().drain(..) {
            self.disk.write(offset, &data)?;
        }
        self.disk.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.waiting.lock().unwrap().push((offset, data.to_vec()));
        Ok(())
    }
}

/// A record of who is in sync that was answered and then gone is how acknowledged data is lost.
#[tokio::test]
async fn what_is_answered_or_seen_is_in_what_was_synced() {
    let folder = tempfile::tempdir().unwrap();
    let attach = |disk| attach(Held { disk, waiting: Mutex::default() });
    let outside = Outside { attach: Box::new(attach), ..Outside::default() };
    let store = EmbeddedStore::open_with(&path_in(&folder), outside).unwrap();
    create(&store, "l1", 0).await;
    let cut = folder.path().join("after-the-cut");
    for value in 1..40 {
        replace(&store, "l1", value).await.unwrap();
        fs::copy(path_in(&folder), &cut).unwrap();
        let Ok(Verified::Sound(state)) = verify(&cut) else { panic!("it opens after a cut") };
        let lamp = state.get(LAMP, "l1").unwrap().expect("it was made");
        assert_eq!(lamp.spec().as_str(), format!(r#"{{"lumen":{value}}}"#));
    }
}
