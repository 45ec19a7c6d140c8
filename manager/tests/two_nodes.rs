//! Two agents with a folder each over one store, in one process; engines and replicas are real.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::Path;

use ankole_api::objects::node::LeaseSpec;
use ankole_api::objects::{ReplicaSpec, VolumeSpec};
use ankole_api::volume::{Robustness, State};
use ankole_store::{Selector, StoreError};

use common::cluster::{Cluster, Running};
use common::data::{fill, holds};
use common::until;

/// Both run, and the manager has heard both say so.
fn two_nodes(folder: &Path) -> (Cluster, Running, Running) {
    let cluster = Cluster::new();
    let (one, two) = (cluster.start("n1", folder), cluster.start("n2", folder));
    let has_renewed = |name: &str| {
        let lease = cluster.runtime.block_on(cluster.store.find::<LeaseSpec>(name)).unwrap();
        lease.is_some_and(|lease| lease.metadata.generation > 2)
    };
    until("both nodes live", || ["n1", "n2"].into_iter().all(has_renewed).then_some(()));
    (cluster, one, two)
}

/// The volume goes on without the node, and is whole again when it is back.
#[test]
fn a_volume_with_replicas_on_both_outlives_one() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _one, two) = two_nodes(folder.path());
    cluster.create("v1", 2);
    let all = Selector::all();
    let replicas = cluster.runtime.block_on(cluster.store.list::<ReplicaSpec>(&all)).unwrap();
    let on: Vec<_> = replicas.objects.into_iter().map(|it| it.unwrap().spec.node).collect();
    assert_eq!(on, ["n1", "n2"]);
    cluster.attach("v1", Some("n1"));
    cluster.until_robustness("v1", Robustness::Healthy);
    let endpoint = cluster.endpoint("v1");
    fill(&endpoint, 1);
    two.die();
    fill(&endpoint, 2);
    cluster.until_robustness("v1", Robustness::Degraded);
    assert!(holds(&endpoint, 2));
    let _two = cluster.start("n2", folder.path());
    cluster.until_robustness("v1", Robustness::Healthy);
    assert!(holds(&endpoint, 2));
}

/// Nobody does anything: the node's lease ends, the other one is named, and the record fences.
#[test]
fn a_volume_that_is_wanted_anywhere_is_attached_elsewhere_when_its_node_dies() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, one, two) = two_nodes(folder.path());
    cluster.create("v1", 2);
    cluster.attach("v1", None);
    cluster.until_robustness("v1", Robustness::Healthy);
    fill(&cluster.endpoint("v1"), 1);
    let first = cluster.volume("v1").unwrap().status.node.unwrap();
    let (dies, lives) = if first == "n1" { (one, two) } else { (two, one) };
    dies.die();
    until("it is attached on the other", || {
        let status = cluster.volume("v1")?.status;
        let is_there = status.node.as_ref() == Some(&lives.node.name);
        (is_there && status.state == Some(State::Attached)).then_some(())
    });
    let endpoint = cluster.endpoint("v1");
    assert!(holds(&endpoint, 1));
    fill(&endpoint, 2);
    // The first comes back, and its replica is filled from the other.
    let _back = cluster.start(&first, folder.path());
    cluster.until_robustness("v1", Robustness::Healthy);
    assert!(holds(&endpoint, 2));
}

/// What was made is removed, on both nodes, before the object goes.
#[test]
fn a_volume_that_is_deleted_leaves_nothing_on_either_node() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _one, _two) = two_nodes(folder.path());
    cluster.create("v1", 2);
    cluster.attach("v1", Some("n1"));
    let directories = || {
        let of = |node: &str| folder.path().join(node).join("disks/default/replicas");
        ["n1", "n2"].map(|node| std::fs::read_dir(of(node)).unwrap().count())
    };
    assert_eq!(directories(), [1, 1]);
    let deleted = cluster.store.delete::<VolumeSpec, StoreError>("v1", |_| Ok(()));
    cluster.runtime.block_on(deleted).unwrap();
    until("it is gone", || cluster.volume("v1").is_none().then_some(()));
    assert_eq!(directories(), [0, 0]);
}
