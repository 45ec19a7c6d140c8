//! What becomes of a node's frontends while it runs: a driver can be unloaded, or its device taken away.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ankole_api::node::{Capability, Finding, Found};

/// Between two looks.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Remembers what could be used.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Vec<Capability>>);

impl Watch {
    /// Compares with what was found before, and logs what became of it.
    pub fn note(&self, found: Vec<Finding>, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut known = self.lock();
        *known = found.into_iter().map(|finding| after(&known, finding, now)).collect();
    }

    pub fn capabilities(&self) -> Vec<Capability> {
        self.lock().clone()
    }

    /// The frontend of this name, if it is lost.
    pub fn lost(&self, name: &str) -> Option<Capability> {
        self.lock().iter().find(|it| it.lost && it.finding.name == name).cloned()
    }

    /// The list is whole at every step, so a panic elsewhere doesn't matter.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Capability>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn after(known: &[Capability], finding: Finding, now: u64) -> Capability {
    let before = known.iter().find(|it| it.finding.name == finding.name);
    let (name, can) = (&finding.name, finding.found != Found::Missing);
    let Some(before) = before else {
        return Capability { finding, lost: false, since_unix_s: now };
    };
    let could = before.finding.found != Found::Missing;
    match (could, can) {
        (true, false) => {
            let (why, next) = (&finding.detail, &finding.next);
            tracing::warn!(name, why, next, "this node can't show volumes this way any more");
        }
        (false, true) => tracing::info!(name, "this node can show volumes this way now"),
        _ => {}
    }
    let since_unix_s = if could == can { before.since_unix_s } else { now };
    Capability { lost: !can && (could || before.lost), finding, since_unix_s }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ankole_api::node::Area;

    fn found(found: Found) -> Vec<Finding> {
        vec![Finding::new(Area::Frontend, "ublk", found, "a detail")]
    }

    /// A volume that is attached goes on without its driver's control, until its engine ends: who
    /// looks must see it before that.
    #[test]
    fn what_could_be_used_and_no_longer_can_is_lost_until_it_is_back() {
        let watch = Watch::default();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        watch.note(found(Found::Missing), at(1));
        assert_eq!(watch.lost("ublk"), None, "it was never there");
        watch.note(found(Found::Yes), at(2));
        watch.note(found(Found::Problem), at(3));
        assert_eq!(watch.lost("ublk"), None, "nearly full is there");
        assert_eq!(watch.capabilities()[0].since_unix_s, 2);
        watch.note(found(Found::Missing), at(4));
        watch.note(found(Found::Missing), at(5));
        assert_eq!(watch.lost("ublk").map(|lost| lost.since_unix_s), Some(4));
        assert_eq!(watch.lost("nbd"), None);
        watch.note(found(Found::Yes), at(6));
        assert_eq!(watch.lost("ublk"), None);
    }
}
