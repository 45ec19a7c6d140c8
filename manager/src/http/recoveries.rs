//! Directories that no volume knows, and volumes made of them.

use std::path::PathBuf;

use ankole_replica::types::ReplicaId;
use axum::extract::{Path, Query, State};

use super::volumes::OfReplica;
use super::{Answer, Body, blocking, name};
use crate::api::salvage::{RecoveryRequest, SalvageView};
use crate::service::Service;

pub(super) async fn orphans(State(service): State<Service>) -> Answer<Vec<PathBuf>> {
    blocking(move || service.orphans()).await
}

pub(super) async fn list(State(service): State<Service>) -> Answer<Vec<SalvageView>> {
    blocking(move || service.recoveries()).await
}

pub(super) async fn evidence(
    State(service): State<Service>,
    Path(volume): Path<String>,
    Query(query): Query<OfReplica>,
) -> Answer<SalvageView> {
    blocking(move || {
        let replica = query.replica.as_deref().map(ReplicaId::from);
        service.recovery_view(&name(&volume)?, replica.as_ref())
    })
    .await
}

pub(super) async fn recover(
    State(service): State<Service>,
    Path(volume): Path<String>,
    Body(request): Body<RecoveryRequest>,
) -> Answer<SalvageView> {
    blocking(move || service.recover(&name(&volume)?, &request)).await
}
