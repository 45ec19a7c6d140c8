//! What one process of the binary is: the parts put together.

pub mod engine;
pub mod job;
pub mod replica;
pub mod share;
pub mod standalone;

use ankole_blockdev::reclaim;

/// What a process needs that serves a volume's data; before it starts a thread.
fn prepare_to_serve() {
    raise_file_limit();
    // The file system on the volume may be on this machine, and memory only be free once it has
    // been written: through the engine, and by the replicas. A replica that waited for that, in
    // any of its threads, would wait for itself.
    let precautions = [reclaim::set_io_flusher(), reclaim::keep_in_memory()];
    for error in precautions.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a precaution for memory pressure: a volume that is used on this \
            machine may hang when memory is short");
    }
}

/// Raises the soft limit of open files to the hard one: a replica has two for each layer, an engine
/// one for each client and replica, a manager two for each engine.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays low: long chains may not open");
    }
}
