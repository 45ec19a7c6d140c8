//! A target in memory, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Access, Target, TargetError};

/// Keeps objects in a map. Tests may look into it and change what is there.
#[derive(Default)]
pub struct MemoryTarget {
    objects: Mutex<BTreeMap<String, Object>>,
}

#[derive(Clone)]
struct Object {
    bytes: Vec<u8>,
    modified: SystemTime,
}

impl MemoryTarget {
    /// Makes the object look as if it had been written at `time`. One that isn't there stays away.
    pub fn set_modified(&self, key: &str, time: SystemTime) {
        if let Some(object) = self.objects().get_mut(key) {
            object.modified = time;
        }
    }

    pub fn keys(&self) -> Vec<String> {
        self.objects().keys().cloned().collect()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        // Every change of the map is one call, so a panic elsewhere leaves it whole.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &str) -> Result<Object, TargetError> {
        let missing = || TargetError::NotFound { access: Access::Read, path: self.locate(key) };
        self.objects().get(key).cloned().ok_or_else(missing)
    }
}

impl Target for MemoryTarget {
    fn url(&self) -> &str {
        "memory:///"
    }

    fn locate(&self, key: &str) -> String {
        format!("memory:///{key}")
    }

    fn children(&self, folder: &str) -> Result<Vec<String>, TargetError> {
        let (prefix, below) = match folder {
            "" => (String::new(), self.keys()),
            folder => (format!("{folder}/"), self.objects_below(folder)?),
        };
        let first = |key: &String| {
            key.strip_prefix(&prefix).and_then(|rest| rest.split('/').next().map(str::to_owned))
        };
        Ok(below.iter().filter_map(first).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn objects_below(&self, folder: &str) -> Result<Vec<String>, TargetError> {
        let prefix = format!("{folder}/");
        Ok(self.objects().keys().filter(|key| key.starts_with(&prefix)).cloned().collect())
    }

    fn open(&self, key: &str) -> Result<Box<dyn io::Read + Send>, TargetError> {
        Ok(Box::new(io::Cursor::new(self.get(key)?.bytes)))
    }

    fn read(&self, key: &str, bytes_max: u64) -> Result<Vec<u8>, TargetError> {
        let Object { bytes, .. } = self.get(key)?;
        if bytes.len() as u64 > bytes_max {
            return Err(TargetError::TooBig { path: self.locate(key), bytes_max });
        }
        Ok(bytes)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), TargetError> {
        let object = Object { bytes: bytes.to_vec(), modified: SystemTime::now() };
        self.objects().insert(key.to_owned(), object);
        Ok(())
    }

    fn flush(&self) -> Result<(), TargetError> {
        Ok(())
    }

    fn object_bytes(&self, key: &str) -> Result<Option<u64>, TargetError> {
        Ok(self.objects().get(key).map(|object| object.bytes.len() as u64))
    }

    fn delete(&self, key: &str) -> Result<(), TargetError> {
        self.objects().remove(key);
        Ok(())
    }

    fn modified(&self, key: &str) -> Result<SystemTime, TargetError> {
        self.get(key).map(|object| object.modified)
    }
}
