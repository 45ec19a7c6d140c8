//! Waiting for clients, whatever the machine is short of meanwhile.

use std::io;
use std::time::Duration;

/// Between two tries: mostly descriptors have run out, and some file must be closed first.
const PAUSE: Duration = Duration::from_millis(100);

/// The next client of a listener. No error ends the wait: descriptors and memory that ran out come
/// back (EMFILE, ENFILE, ENOBUFS, ENOMEM), and one client that went away before it was taken
/// (ECONNABORTED) says nothing of the next. `place` is what a person is told when it lasts.
pub async fn next_client<T, Accepting: Future<Output = io::Result<T>>>(
    place: impl std::fmt::Display,
    accept: impl Fn() -> Accepting,
) -> T {
    let mut told = false;
    loop {
        match accept().await {
            Ok(client) => return client,
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(%place, %error, "can't take a client; trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// One such error ended a replica, and with it the volume's copy.
    #[tokio::test]
    async fn whatever_accept_says_the_next_client_is_waited_for() {
        let errors = [libc::EMFILE, libc::ECONNABORTED];
        let tries = Cell::new(0);
        let accept = || {
            let error = errors.get(tries.get()).copied();
            tries.set(tries.get() + 1);
            std::future::ready(match error {
                Some(error) => Err(io::Error::from_raw_os_error(error)),
                None => Ok("a client"),
            })
        };
        assert_eq!(next_client("here", accept).await, "a client");
        assert_eq!(tries.get(), errors.len() + 1);
    }
}
