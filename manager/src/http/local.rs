//! The unix socket of the API: who may connect is told by the kernel.

use axum::serve::Listener;
use tokio::net::UnixStream;

use ankole_blockdev::accept::next_client;
use ankole_blockdev::unix_socket;

use crate::agent::layout::may_use;

/// Takes root and the server's own user, whatever the modes of the socket's folder have become.
pub struct OwnersOnly(pub unix_socket::Listener);

impl Listener for OwnersOnly {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            let stream = next_client("the API's socket", || self.0.accept()).await;
            match stream.peer_cred() {
                Ok(peer) if may_use(peer.uid()) => return (stream, ()),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "refused on the API's socket"),
                Err(error) => tracing::debug!(%error, "a client of the API's socket is gone"),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}
