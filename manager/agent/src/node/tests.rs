use ankole_api::objects::{Replica, ReplicaSpec};
use ankole_store::MemoryStore;

use super::*;
use crate::LocalSupervisor;
use crate::format::format;

fn node(folder: &std::path::Path, store: Arc<dyn Store>) -> Arc<Node> {
    let layout = Layout::prepare(folder, &[], &folder.join("short")).unwrap();
    let supervisor = LocalSupervisor::open(&layout.run(), &layout.socket_folders()).unwrap();
    let supervisor = Arc::new(supervisor);
    let patience = Duration::from_secs(300);
    let (program, boot) = ("/bin/false".into(), "boot".into());
    Arc::new(Node::new("n1".into(), store, supervisor, layout, program, format, boot, patience))
}

fn replica(folder: &std::path::Path) -> Replica {
    let spec = r#"{"volume": "v1", "volumeUid": "u1", "id": "r1", "node": "n1", "disk": "/",
        "folder": "v1-u1-r1", "sizeBytes": 2097152, "served": false, "make": "ifNothing"}"#;
    let mut spec: ReplicaSpec = serde_json::from_str(spec).unwrap();
    spec.disk = folder.join("disks/default");
    Replica::new("v1-r1".parse().unwrap(), spec)
}

/// What was told to a task just as it ended was told to nobody: a volume that was removed and made
/// anew could stay `creating`.
#[tokio::test]
async fn a_look_at_all_reaches_an_object_whose_task_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    store.create(&replica(folder.path())).await.unwrap();
    let node = node(folder.path(), Arc::clone(&store));
    let own = || Selector::on_node("n1");
    let (engines, _) = Cache::new(Arc::clone(&store), own());
    let (replicas, keep) = Cache::new(Arc::clone(&store), own());
    let ((backups, _), (restores, _)) =
        (Cache::new(Arc::clone(&store), own()), Cache::new(Arc::clone(&store), own()));
    let keep = tokio::spawn(keep);
    replicas.filled().await;
    let (tasks, running) = (BTreeMap::new(), JoinSet::new());
    let mut director = Director { node, engines, replicas, backups, restores, tasks, running };
    let name = || "v1-r1".parse::<Name>().unwrap();
    let (ended, hears) = mpsc::unbounded_channel();
    drop(hears);
    director.tasks.insert(Key::Replica(name()), ended);
    director.look_at_all();
    while store.get::<ReplicaSpec>("v1-r1").await.unwrap().status.incarnation.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    keep.abort();
}
