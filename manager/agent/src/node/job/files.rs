//! The folder of a job: what its process is told and says ([`ankole_api::job`]), and its log.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ankole_api::error::chain;
use ankole_api::job::{JobOrder, PROGRESS_FILE, RESULT_FILE, SPEC_FILE};
use ankole_plan::node::facts::JobFiles;
use ankole_whole_file as whole_file;
use serde::de::DeserializeOwned;

use crate::layout::make_private_folder;

/// Of a file that a process has written: more isn't one of ours.
const BYTES_MAX: u64 = 1 << 20;

pub(super) fn log(folder: &Path) -> PathBuf {
    folder.join("log")
}

/// Whether what lies there is the job's of that uid, as far as it can be told.
pub(super) fn are_of(folder: &Path, uid: &str) -> bool {
    let spec = load::<JobOrder>(&folder.join(SPEC_FILE));
    !matches!(spec, Ok(Some(spec)) if spec.uid != uid)
}

/// None: it was never started. Of one whose object is gone all that lies there counts.
pub(super) fn read(folder: &Path, has_object: bool) -> Option<JobFiles> {
    let sign = if has_object { folder.join(SPEC_FILE) } else { folder.to_owned() };
    if !sign.try_exists().unwrap_or(true) {
        return None;
    }
    let result = load(&folder.join(RESULT_FILE)).map_err(|error| chain(&error));
    let progress = load(&folder.join(PROGRESS_FILE)).ok().flatten();
    Some(JobFiles { progress, result: result.transpose() })
}

/// Gives the length of the log before its process starts.
pub(super) fn prepare(folder: &Path, spec: &JobOrder) -> io::Result<u64> {
    make_private_folder(folder).map_err(io::Error::other)?;
    whole_file::remove_if_there(&folder.join(PROGRESS_FILE))?;
    whole_file::write(&folder.join(SPEC_FILE), &serde_json::to_vec(spec)?)?;
    Ok(fs::metadata(log(folder)).map_or(0, |log| log.len()))
}

/// What it was told, since it couldn't be started.
pub(super) fn take_back(folder: &Path) {
    let path = folder.join(SPEC_FILE);
    if let Err(error) = whole_file::remove_if_there(&path) {
        tracing::warn!(path = %path.display(), %error, "it will look as if its job had been started");
    }
}

pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let mut text = Vec::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    file.take(BYTES_MAX).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}
