//! Situations of engines, of replicas and of jobs on their nodes and the plans for them, in golden files;
//! and what holds in all of them.

mod devices;
mod engines;
mod jobs;
mod replicas;

use std::time::Duration;

use super::facts::{Doubt, History, LastWords};

fn ended(seconds: u64) -> History {
    History {
        hold_off: Some(Duration::from_secs(seconds)),
        last_end: Some("exit status: 1".into()),
        last_words: Some(LastWords {
            error: "serve replica: it is in use by process 12".into(),
            next: Some("end that process".into()),
        }),
        doubt: None,
    }
}

fn doubtful() -> History {
    let doubt = Doubt { message: "it may still run".into(), next: "end process 10".into() };
    History { doubt: Some(doubt), ..History::default() }
}
