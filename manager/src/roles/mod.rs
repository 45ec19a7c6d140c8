//! What one process of the binary is: the parts put together.

pub mod demo;
pub mod engine;
pub mod replica;
pub mod standalone;

/// Raises the soft limit of open files to the hard one: a replica has two for each layer, an engine
/// one for each client and replica.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays low: long chains may not open");
    }
}
