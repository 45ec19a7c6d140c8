//! Volumes, their tickets and their replicas.

use ankole_replica::types::ReplicaId;
use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::{Answer, Body, Refusal, blocking, name};
use crate::api::attachment::{AttachRequest, TicketKind};
use crate::api::replica::ReplicaView;
use crate::api::salvage::{SalvageRequest, SalvageView};
use crate::api::volume::{ResizeRequest, UpgradeRequest, VolumeRequest, VolumeView};
use crate::service::Service;

pub(super) async fn list(State(service): State<Service>) -> Answer<Vec<VolumeView>> {
    blocking(move || service.volumes()).await
}

pub(super) async fn create(
    State(service): State<Service>,
    Body(request): Body<VolumeRequest>,
) -> Answer<VolumeView> {
    blocking(move || service.create_volume(&request)).await
}

pub(super) async fn show(
    State(service): State<Service>,
    Path(volume): Path<String>,
) -> Answer<VolumeView> {
    blocking(move || service.volume(&name(&volume)?)).await
}

pub(super) async fn remove(
    State(service): State<Service>,
    Path(volume): Path<String>,
) -> Answer<VolumeView> {
    blocking(move || service.delete_volume(&name(&volume)?)).await
}

pub(super) async fn resize(
    State(service): State<Service>,
    Path(volume): Path<String>,
    Body(request): Body<ResizeRequest>,
) -> Answer<VolumeView> {
    blocking(move || service.resize_volume(&name(&volume)?, request.size_bytes)).await
}

pub(super) async fn upgrade(
    State(service): State<Service>,
    Path(volume): Path<String>,
    Body(request): Body<UpgradeRequest>,
) -> Answer<VolumeView> {
    blocking(move || service.upgrade_engine(&name(&volume)?, &request)).await
}

pub(super) async fn attach(
    State(service): State<Service>,
    Path((volume, ticket)): Path<(String, String)>,
    Body(request): Body<AttachRequest>,
) -> Answer<VolumeView> {
    blocking(move || {
        let ticket = name(&ticket)?;
        service.attach(&name(&volume)?, &ticket, TicketKind::User, &request)
    })
    .await
}

#[derive(Deserialize)]
pub(super) struct Detach {
    #[serde(default)]
    force: bool,
}

pub(super) async fn detach(
    State(service): State<Service>,
    Path((volume, ticket)): Path<(String, String)>,
    Query(query): Query<Detach>,
) -> Answer<VolumeView> {
    blocking(move || service.detach(&name(&volume)?, &ticket, query.force)).await
}

#[derive(Deserialize)]
pub(super) struct OfReplica {
    pub(super) replica: Option<String>,
}

pub(super) async fn evidence(
    State(service): State<Service>,
    Path(volume): Path<String>,
    Query(query): Query<OfReplica>,
) -> Answer<SalvageView> {
    blocking(move || {
        let replica = query.replica.as_deref().map(ReplicaId::from);
        service.salvage_view(&name(&volume)?, replica.as_ref())
    })
    .await
}

pub(super) async fn salvage(
    State(service): State<Service>,
    Path(volume): Path<String>,
    Body(request): Body<SalvageRequest>,
) -> Answer<SalvageView> {
    blocking(move || service.salvage(&name(&volume)?, &request)).await
}

pub(super) async fn rebuild(
    State(service): State<Service>,
    Path((volume, replica)): Path<(String, String)>,
) -> Answer<VolumeView> {
    blocking(move || service.rebuild_replica(&name(&volume)?, &ReplicaId::from(replica.as_str())))
        .await
}

#[derive(Deserialize)]
pub(super) struct OfVolume {
    volume: Option<String>,
}

pub(super) async fn replicas(
    State(service): State<Service>,
    Query(query): Query<OfVolume>,
) -> Result<Json<Vec<ReplicaView>>, Refusal> {
    blocking(move || {
        let volume = query.volume.as_deref().map(name).transpose()?;
        service.replicas(volume.as_ref())
    })
    .await
}
