//! Connections: so many at a time, and none for longer than it is of use.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::sync::Semaphore;

/// What the clients of one listener may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Further ones wait in the listener's queue.
    pub connections: usize,
    /// For the head of a request, from the end of the one before.
    pub patience: Duration,
}

impl Limits {
    /// Few enough that descriptors are left for the arbiter, the store and the processes: nobody has
    /// to know a token to connect.
    pub fn of_this_process() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let connections = usize::try_from(descriptors / 4).unwrap_or(usize::MAX);
        Self { connections: connections.clamp(1, 512), patience: Duration::from_secs(30) }
    }
}

/// Until it is dropped.
pub async fn serve<L: Listener>(mut listener: L, router: Router, limits: Limits) -> Infallible {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.patience);
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let (stream, _) = listener.accept().await;
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the API ended");
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use axum::routing::get;

    use super::*;

    /// Until the test process ends.
    fn start(limits: Limits) -> SocketAddr {
        let (listening, is_listening) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                listening.send(listener.local_addr().unwrap()).unwrap();
                let router = Router::new().route("/", get(|| async { "moo" }));
                serve(listener, router, limits).await
            });
        });
        is_listening.recv().unwrap()
    }

    fn hear(mut stream: TcpStream) -> String {
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said
    }

    /// They were kept for ever, each with a descriptor, until nobody could connect.
    #[test]
    fn who_says_nothing_or_half_a_request_or_nothing_more_loses_his_place() {
        let address = start(Limits { connections: 1, patience: Duration::from_millis(100) });
        let say = |text: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            stream
        };
        let whole = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let clients = ["", "GET / HTTP/1.1\r\nhost:", whole, whole].map(say);
        let said = clients.map(hear);
        assert!(said[..2].iter().all(|said| !said.contains("200")), "{said:?}");
        assert!(said[2..].iter().all(|said| said.ends_with("moo")), "{said:?}");
    }
}
