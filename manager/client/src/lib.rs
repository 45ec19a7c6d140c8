//! The REST API as typed calls; they block. Used by the command line and the demo.

mod local;
pub mod proof;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use ankole_api::attachment::{AttachRequest, USER_TICKET};
use ankole_api::backup::{BackupRequest, Job, RestoreRequest};
use ankole_api::node::NodeView;
use ankole_api::replica::ReplicaView;
use ankole_api::salvage::{RecoveryRequest, SalvageRequest, SalvageView};
use ankole_api::snapshot::{Chain, SnapshotRequest};
use ankole_api::target::{BackupTarget, TargetRequest};
use ankole_api::volume::{ResizeRequest, UpgradeRequest, VolumeRequest, VolumeView};
use ankole_api::{ApiError, ErrorKind, Name};
use ankole_replica::types::ReplicaId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::config::Config;

/// A snapshot waits for the engine to settle and flush.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(180);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub struct Client {
    agent: ureq::Agent,
    server: String,
    /// Where it is, as a person knows it.
    place: String,
    /// For a server behind TCP.
    token: Option<String>,
    /// The server there has shown that it has the token.
    is_proved: OnceLock<()>,
}

impl Client {
    /// The server that listens on this socket of this machine.
    pub fn local(socket: PathBuf) -> Self {
        let place = socket.display().to_string();
        let agent = ureq::Agent::with_parts(config(), local::Socket(socket), local::Nowhere);
        let is_proved = OnceLock::new();
        Self { agent, server: local::URL.into(), place, token: None, is_proved }
    }

    /// `server` is a URL without a path, such as `http://127.0.0.1:9500`. It gets the token after it
    /// has shown that it knows it.
    pub fn remote(server: &str, token: &str) -> Self {
        let server: String = server.trim_end_matches('/').into();
        let place = server.clone();
        let is_proved = OnceLock::new();
        Self { agent: config().into(), server, place, token: Some(token.into()), is_proved }
    }

    pub fn node(&self) -> Result<NodeView, ApiError> {
        self.get("/v1/node", &[])
    }

    pub fn volumes(&self) -> Result<Vec<VolumeView>, ApiError> {
        self.get("/v1/volumes", &[])
    }
    pub fn volume(&self, name: &Name) -> Result<VolumeView, ApiError> {
        self.get(&format!("/v1/volumes/{name}"), &[])
    }
    pub fn create_volume(&self, request: &VolumeRequest) -> Result<VolumeView, ApiError> {
        self.send("POST", "/v1/volumes", request)
    }
    /// Answers at once; the volume can be used when it has an endpoint.
    pub fn attach(&self, volume: &Name, request: &AttachRequest) -> Result<VolumeView, ApiError> {
        self.send("PUT", &format!("/v1/volumes/{volume}/tickets/{USER_TICKET}"), request)
    }
    /// Answers at once.
    pub fn detach(&self, volume: &Name, force: bool) -> Result<VolumeView, ApiError> {
        self.delete(&format!("/v1/volumes/{volume}/tickets/{USER_TICKET}?force={force}"))
    }
    pub fn resize_volume(&self, volume: &Name, size_bytes: u64) -> Result<VolumeView, ApiError> {
        self.send("PUT", &format!("/v1/volumes/{volume}/size"), &ResizeRequest { size_bytes })
    }
    /// Answers at once; it is done when there is another engine.
    pub fn upgrade_engine(
        &self,
        volume: &Name,
        request: &UpgradeRequest,
    ) -> Result<VolumeView, ApiError> {
        self.send("PUT", &format!("/v1/volumes/{volume}/engine"), request)
    }
    /// Answers at once; the volume is gone when it isn't found any more.
    pub fn delete_volume(&self, volume: &Name) -> Result<VolumeView, ApiError> {
        self.delete(&format!("/v1/volumes/{volume}"))
    }
    pub fn replicas(&self, volume: Option<&Name>) -> Result<Vec<ReplicaView>, ApiError> {
        let query: Vec<_> = volume.iter().map(|name| ("volume", &***name)).collect();
        self.get("/v1/replicas", &query)
    }

    /// Answers at once; it is done when the replica is in sync again.
    pub fn rebuild_replica(
        &self,
        volume: &Name,
        replica: &ReplicaId,
    ) -> Result<VolumeView, ApiError> {
        self.send("POST", &format!("/v1/volumes/{volume}/replicas/{}/rebuild", replica.0), &())
    }

    /// What the volume's directories tell; changes nothing.
    pub fn evidence(
        &self,
        volume: &Name,
        replica: Option<&ReplicaId>,
    ) -> Result<SalvageView, ApiError> {
        let query: Vec<_> = replica.iter().map(|replica| ("replica", &*replica.0)).collect();
        self.get(&format!("/v1/volumes/{volume}/salvage"), &query)
    }
    pub fn salvage(
        &self,
        volume: &Name,
        request: &SalvageRequest,
    ) -> Result<SalvageView, ApiError> {
        self.send("POST", &format!("/v1/volumes/{volume}/salvage"), request)
    }

    /// Directories of replicas that no volume knows.
    pub fn orphans(&self) -> Result<Vec<PathBuf>, ApiError> {
        self.get("/v1/orphans", &[])
    }
    /// What volumes could be made of them; reads them all.
    pub fn recoveries(&self) -> Result<Vec<SalvageView>, ApiError> {
        self.get("/v1/recoveries", &[])
    }
    pub fn recovery(
        &self,
        volume: &Name,
        replica: Option<&ReplicaId>,
    ) -> Result<SalvageView, ApiError> {
        let query: Vec<_> = replica.iter().map(|replica| ("replica", &*replica.0)).collect();
        self.get(&format!("/v1/recoveries/{volume}"), &query)
    }
    pub fn recover(
        &self,
        volume: &Name,
        request: &RecoveryRequest,
    ) -> Result<SalvageView, ApiError> {
        self.send("POST", &format!("/v1/recoveries/{volume}"), request)
    }

    pub fn snapshots(&self, volume: &Name) -> Result<Chain, ApiError> {
        self.get(&format!("/v1/volumes/{volume}/snapshots"), &[])
    }
    pub fn create_snapshot(&self, volume: &Name, name: Option<Name>) -> Result<Chain, ApiError> {
        let request = SnapshotRequest { name };
        self.send("POST", &format!("/v1/volumes/{volume}/snapshots"), &request)
    }
    pub fn revert(&self, volume: &Name, snapshot: &Name) -> Result<Chain, ApiError> {
        self.send("POST", &format!("/v1/volumes/{volume}/snapshots/{snapshot}/revert"), &())
    }
    pub fn remove_snapshot(&self, volume: &Name, snapshot: &Name) -> Result<Chain, ApiError> {
        self.delete(&format!("/v1/volumes/{volume}/snapshots/{snapshot}"))
    }

    pub fn targets(&self) -> Result<Vec<BackupTarget>, ApiError> {
        self.get("/v1/targets", &[])
    }
    pub fn add_target(&self, name: &Name, url: &str) -> Result<BackupTarget, ApiError> {
        self.send("PUT", &format!("/v1/targets/{name}"), &TargetRequest { url: url.into() })
    }
    pub fn remove_target(&self, name: &Name) -> Result<(), ApiError> {
        self.delete(&format!("/v1/targets/{name}"))
    }

    pub fn create_backup(&self, request: &BackupRequest) -> Result<Job, ApiError> {
        self.send("POST", "/v1/backups", request)
    }
    pub fn restore_backup(&self, request: &RestoreRequest) -> Result<Job, ApiError> {
        self.send("POST", "/v1/restores", request)
    }
    pub fn job(&self, id: u64) -> Result<Job, ApiError> {
        self.get(&format!("/v1/jobs/{id}"), &[])
    }

    fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, ApiError> {
        let request = self.agent.get(format!("{}{path}", self.server));
        let request = request.query_pairs(query.iter().copied());
        self.answer(self.authorized(request)?.call())
    }

    fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let request = self.agent.delete(format!("{}{path}", self.server));
        self.answer(self.authorized(request)?.call())
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let url = format!("{}{path}", self.server);
        let request = if method == "PUT" { self.agent.put(url) } else { self.agent.post(url) };
        self.answer(self.authorized(request)?.send_json(body))
    }

    fn authorized<B>(
        &self,
        request: ureq::RequestBuilder<B>,
    ) -> Result<ureq::RequestBuilder<B>, ApiError> {
        let Some(token) = &self.token else { return Ok(request) };
        if self.is_proved.get().is_none() {
            self.prove(token)?;
            let _ = self.is_proved.set(());
        }
        Ok(request.header("authorization", format!("Bearer {token}")))
    }

    /// See [`proof`]. Nothing secret is sent.
    fn prove(&self, token: &str) -> Result<(), ApiError> {
        let nonce = proof::nonce()
            .map_err(|error| ApiError::failed(format!("read random bytes: {error}")))?;
        let asked = self.agent.get(format!("{}/v1/proof", self.server)).query("nonce", &nonce);
        let shown: proof::Proof = self.answer(asked.call())?;
        let port = self.server.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        if proof::is_right(token, port.unwrap_or(80), &nonce, &shown.proof) {
            return Ok(());
        }
        let server = &self.server;
        Err(ApiError::new(
            ErrorKind::Unauthorized,
            format!("what answers at {server} has another token: it is another ankole, or a stranger that took the port; it was told nothing"),
        )
        .next("name the data folder with --data, or set ANKOLE_TOKEN to the token in the server's data folder"))
    }

    fn answer<T: DeserializeOwned>(
        &self,
        outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, ApiError> {
        let unreachable = |error: ureq::Error| {
            let kind = match error {
                ureq::Error::Timeout(_) => ErrorKind::TimedOut,
                _ => ErrorKind::Failed,
            };
            ApiError::new(kind, format!("no ankole answers at {}: {error}", self.place)).next(
                "start one with `ankole standalone --data DIR`, or name it with --server or --data",
            )
        };
        let mut response = outcome.map_err(unreachable)?;
        let ok = response.status().is_success();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = body.read_to_vec().map_err(unreachable)?;
        if ok {
            serde_json::from_slice(&text).map_err(|error| self.not_ankole(&error))
        } else {
            let error = serde_json::from_slice::<ApiError>(&text);
            Err(error.unwrap_or_else(|error| self.not_ankole(&error)))
        }
    }

    fn not_ankole(&self, error: &serde_json::Error) -> ApiError {
        ApiError::failed(format!("what answers at {} isn't this ankole: {error}", self.place))
            .next("look at the address, and at `ankole version` on both sides")
    }
}

fn config() -> Config {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(Some(ANSWER_TIMEOUT))
        .proxy(None) // it is on this machine
        .build()
}
