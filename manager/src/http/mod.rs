//! The REST API: JSON over HTTP, on a unix socket for the server's own user and root, and on loopback
//! with a bearer token.
//!
//! ```text
//! GET    /v1/version
//! GET    /v1/proof?nonce=N        without a token: see ankole_client::proof
//! GET    /v1/node
//! GET    /v1/volumes              POST {name, sizeBytes, …}
//! GET    /v1/volumes/V            DELETE
//! PUT    /v1/volumes/V/size       {sizeBytes}
//! PUT    /v1/volumes/V/tickets/ID {readOnly, node}     DELETE ?force=true
//! GET    /v1/volumes/V/salvage ?replica=R                      POST {replica, acceptStale, expected}
//! GET    /v1/volumes/V/snapshots  POST {name}
//! DELETE /v1/volumes/V/snapshots/S
//! POST   /v1/volumes/V/snapshots/S/revert
//! GET    /v1/orphans              directories of replicas that no volume knows
//! GET    /v1/recoveries           what could be made of them
//! GET    /v1/recoveries/V ?replica=R                           POST {replica, acceptStale, frontend}
//! GET    /v1/replicas?volume=V
//! POST   /v1/volumes/V/replicas/R/rebuild
//! GET    /v1/targets              PUT /v1/targets/T {url}     DELETE
//! GET    /v1/backups?target=T&volume=V                        POST {volume, snapshot, target}
//! POST   /v1/restores {url, volume, replicas}
//! GET    /v1/jobs/N
//! ```
//! Every error is `{kind, message, next}`; 503 is one of having too much to do. Handlers only take apart and put together; what they
//! call may block, and runs where that is allowed.

mod backups;
mod local;
mod recoveries;
mod serve;
mod snapshots;
mod targets;
mod turns;
mod volumes;

use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::node::NodeView;
use crate::api::{ApiError, ErrorKind, Name};
use crate::client::proof::{self, Proof};
use crate::service::Service;

pub use self::local::OwnersOnly;
pub use self::serve::{Limits, serve};
use self::turns::Turns;

const BODY_BYTES_MAX: usize = 1 << 20;
/// For a whole body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
const FAILED: &str = "the server failed to work on this: see its log";

/// The same for whoever the token shows to be allowed; `port` is the one that is listened on.
pub fn remote(router: Router, token: String, port: u16) -> Router {
    let token: &'static str = token.leak(); // one for the life of the process
    let proof = move |Query(asked): Query<Asked>| async move {
        Json(Proof { proof: proof::of(token, port, &asked.nonce) })
    };
    router
        .layer(middleware::from_fn_with_state(token, require_token))
        .route("/v1/proof", get(proof))
}

#[derive(Deserialize)]
struct Asked {
    nonce: String,
}

/// For whoever may connect: nobody is asked who he is. Its copies take turns together.
pub fn router(service: Service) -> Router {
    let quick = middleware::from_fn_with_state(Turns::quick(), turns::take);
    let slow = middleware::from_fn_with_state(Turns::slow(), turns::take);
    quick_routes()
        .route_layer(quick)
        .merge(slow_routes().route_layer(slow))
        .route("/v1/version", get(version))
        .fallback(|| async { Refusal(ApiError::not_found("there is nothing at this address")) })
        .method_not_allowed_fallback(|| async {
            Refusal(ApiError::invalid("this address doesn't take that method"))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(service)
}

fn quick_routes() -> Router<Service> {
    Router::new()
        .route("/v1/node", get(node))
        .route("/v1/volumes", get(volumes::list))
        .route("/v1/volumes/{volume}", get(volumes::show).delete(volumes::remove))
        .route("/v1/volumes/{volume}/size", put(volumes::resize))
        .route(
            "/v1/volumes/{volume}/tickets/{ticket}",
            put(volumes::attach).delete(volumes::detach),
        )
        .route("/v1/volumes/{volume}/replicas/{replica}/rebuild", post(volumes::rebuild))
        .route("/v1/orphans", get(recoveries::orphans))
        .route("/v1/replicas", get(volumes::replicas))
        .route("/v1/targets", get(targets::list))
        .route("/v1/targets/{target}", delete(targets::remove))
        .route("/v1/jobs/{job}", get(backups::job))
}

/// They wait for a manager, an agent, an engine or a program, or read a target or directories.
fn slow_routes() -> Router<Service> {
    Router::new()
        .route("/v1/volumes", post(volumes::create))
        .route("/v1/volumes/{volume}/engine", put(volumes::upgrade))
        .route("/v1/volumes/{volume}/salvage", get(volumes::evidence).post(volumes::salvage))
        .route("/v1/volumes/{volume}/snapshots", get(snapshots::list).post(snapshots::create))
        .route("/v1/volumes/{volume}/snapshots/{snapshot}", delete(snapshots::remove))
        .route("/v1/volumes/{volume}/snapshots/{snapshot}/revert", post(snapshots::revert))
        .route("/v1/recoveries", get(recoveries::list))
        .route("/v1/recoveries/{volume}", get(recoveries::evidence).post(recoveries::recover))
        .route("/v1/targets/{target}", put(targets::add))
        .route("/v1/backups", get(backups::list).post(backups::create))
        .route("/v1/restores", post(backups::restore))
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

async fn version() -> Json<Version> {
    Json(Version { version: ankole_replica::VERSION })
}

async fn node(State(service): State<Service>) -> Answer<NodeView> {
    blocking(move || service.node()).await
}

async fn require_token(
    State(token): State<&'static str>,
    request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|given| equal(given, token.as_bytes())) {
        return next.run(request).await;
    }
    let error = ApiError::new(ErrorKind::Unauthorized, "the token is missing or wrong")
        .next("it is in the file `token` of the server's data folder: use --data or ANKOLE_TOKEN");
    Refusal(error).into_response()
}

/// Takes the same time wherever the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// An error on its way out.
struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status());
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(self.0)).into_response()
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

/// Runs what may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(Json(outcome?)),
        Err(_) => Err(ApiError::failed(FAILED).into()),
    }
}

/// A body of JSON, whatever it says it is. An empty one is `{}`.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = axum::body::Bytes::from_request(request, state);
        let late = |_| ApiError::timed_out("the request's body didn't come to its end");
        let bytes = tokio::time::timeout(BODY_PATIENCE, bytes).await.map_err(late)?;
        let bytes = bytes.map_err(|error: BytesRejection| ApiError::invalid(error.body_text()))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let parsed = serde_json::from_slice(text);
        Ok(Self(parsed.map_err(|error| ApiError::invalid(format!("in the request: {error}")))?))
    }
}

fn name(text: &str) -> Result<Name, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(format!("{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abd"));
        assert!(!equal(b"ab", b"abc"));
        assert!(!equal(b"", b"abc"));
    }
}
