//! What goes wrong in a round, and when. Pure: a seed and a round's number are one plan.
//!
//! A plan has a theme, so that faults which together would rightly destroy the volume never meet:
//! a disk is replaced only while all other copies are sound.

use std::fmt;
use std::time::Duration;

use crate::arbiter::Mood;
use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Any of replicas and engines die, are stopped, are cut off.
    Anything,
    /// Disks are full.
    FullDisks,
    /// A disk is replaced by an empty one.
    NewDisk,
    /// A second engine is granted while the first is stopped.
    Race,
}

/// Weather without its path, so that a plan can be made before there is a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Cut,
    Silent,
    NoAnswers,
    NoRequests,
    Slow(Duration),
    Brittle(u64),
    /// The connection leads to another replica.
    Misrouted(usize),
    /// The connection leads to a replica of the same name, of another volume.
    OtherVolume,
}

/// Replicas are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillReplica {
        replica: usize,
        down: Duration,
    },
    KillEngine {
        down: Duration,
    },
    StopReplica {
        replica: usize,
        time: Duration,
    },
    StopEngine {
        time: Duration,
    },
    Link {
        replica: usize,
        trouble: Trouble,
        time: Duration,
    },
    ArbiterLink {
        trouble: Trouble,
        time: Duration,
    },
    Arbiter {
        mood: Mood,
        time: Duration,
    },
    FillDisk {
        replica: usize,
        left_bytes: u64,
        time: Duration,
    },
    ReplaceDisk {
        replica: usize,
    },
    /// The engine is stopped and succeeded, and goes on later.
    Race {
        stopped: Duration,
    },
    Snapshot,
    RemoveSnapshot,
    Expand,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub theme: Theme,
    /// What is done, at which time of the round; in order.
    pub steps: Vec<(Duration, Fault)>,
    pub length: Duration,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn time(random: &mut Random, from_ms: u64, end_ms: u64) -> Duration {
    ms(random.between(from_ms, end_ms))
}

/// What a run can do.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    pub replicas: usize,
    pub can_fill: bool,
    /// A replica that is silent for so long is given up by the engine.
    pub replica_timeout: Duration,
}

impl Plan {
    /// Nothing happens: the volume is only looked at.
    pub fn quiet() -> Self {
        Self { theme: Theme::Anything, steps: Vec::new(), length: Duration::ZERO }
    }

    pub fn random(random: &mut Random, means: Means) -> Self {
        let theme = match random.below(100) {
            0..64 => Theme::Anything,
            64..76 if means.can_fill => Theme::FullDisks,
            76..86 => Theme::NewDisk,
            86..100 => Theme::Race,
            _ => Theme::Anything,
        };
        let length = time(random, 600, 1500);
        let mut faults = Vec::new();
        match theme {
            Theme::Anything => {
                for _ in 0..random.between(1, 6) {
                    faults.push(any_fault(random, means));
                }
            }
            Theme::FullDisks => {
                for _ in 0..random.between(1, 4) {
                    faults.push(full_disk(random, means));
                }
                if random.percent(40) {
                    faults.push(death(random, means));
                }
            }
            Theme::NewDisk => faults.push(Fault::ReplaceDisk { replica: any(random, means) }),
            Theme::Race => {
                faults.push(Fault::Race { stopped: time(random, 150, 900) });
                if random.percent(40) {
                    faults.push(death(random, means));
                }
            }
        }
        for _ in 0..random.below(3) {
            faults.push(match random.below(20) {
                0..11 => Fault::Snapshot,
                11..19 => Fault::RemoveSnapshot,
                _ => Fault::Expand,
            });
        }
        let at = |random: &mut Random| ms(random.below(length.as_millis() as u64 * 2 / 3));
        let mut steps: Vec<_> = faults.into_iter().map(|fault| (at(random), fault)).collect();
        if random.percent(30) {
            // Two at once.
            if let [first, second, ..] = &mut steps[..] {
                second.0 = first.0;
            }
        }
        steps.sort_by_key(|step| step.0);
        Self { theme, steps, length }
    }
}

fn any(random: &mut Random, means: Means) -> usize {
    random.below(means.replicas as u64) as usize
}

fn death(random: &mut Random, means: Means) -> Fault {
    match random.percent(65) {
        true => Fault::KillReplica { replica: any(random, means), down: time(random, 0, 700) },
        false => Fault::KillEngine { down: time(random, 0, 300) },
    }
}

fn full_disk(random: &mut Random, means: Means) -> Fault {
    let left_bytes = match random.percent(50) {
        true => 0,
        false => random.below(4 << 20),
    };
    let replica = any(random, means);
    Fault::FillDisk { replica, left_bytes, time: time(random, 300, 1200) }
}

fn any_fault(random: &mut Random, means: Means) -> Fault {
    // Now and then longer than the engine's patience.
    let pause = |random: &mut Random| match random.percent(15) {
        true => means.replica_timeout + time(random, 0, 500),
        false => time(random, 20, 600),
    };
    match random.below(100) {
        0..40 => death(random, means),
        40..52 => Fault::StopReplica { replica: any(random, means), time: pause(random) },
        52..58 => Fault::StopEngine { time: time(random, 20, 600) },
        58..80 => {
            let replica = any(random, means);
            Fault::Link { replica, trouble: trouble(random, means), time: pause(random) }
        }
        80..86 => {
            let trouble = trouble(random, means);
            Fault::ArbiterLink { trouble, time: time(random, 50, 800) }
        }
        _ => Fault::Arbiter { mood: mood(random), time: time(random, 100, 800) },
    }
}

fn trouble(random: &mut Random, means: Means) -> Trouble {
    match random.below(8) {
        0 => Trouble::Cut,
        1 => Trouble::Silent,
        2 => Trouble::NoAnswers,
        3 => Trouble::NoRequests,
        4 => Trouble::Slow(time(random, 1, 60)),
        5 => Trouble::Brittle(random.below(100_000)),
        6 => Trouble::OtherVolume,
        _ => Trouble::Misrouted(any(random, means)),
    }
}

fn mood(random: &mut Random) -> Mood {
    match random.below(5) {
        0 => Mood::Late(time(random, 20, 600)),
        1 => Mood::LosesAnswers,
        2 => Mood::LosesRequests,
        3 => Mood::Procrastinates(time(random, 20, 600)),
        _ => Mood::Silent,
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |replica: &usize| format!("r{}", replica + 1);
        match self {
            Self::KillReplica { replica, down } => {
                write!(f, "kill {} for {} ms", name(replica), down.as_millis())
            }
            Self::KillEngine { down } => write!(f, "kill engine for {} ms", down.as_millis()),
            Self::StopReplica { replica, time } => {
                write!(f, "stop {} for {} ms", name(replica), time.as_millis())
            }
            Self::StopEngine { time } => write!(f, "stop engine for {} ms", time.as_millis()),
            Self::Link { replica, trouble, time } => {
                write!(f, "link to {} {trouble:?} for {} ms", name(replica), time.as_millis())
            }
            Self::ArbiterLink { trouble, time } => {
                write!(f, "link to the arbiter {trouble:?} for {} ms", time.as_millis())
            }
            Self::Arbiter { mood, time } => {
                write!(f, "arbiter {mood:?} for {} ms", time.as_millis())
            }
            Self::FillDisk { replica, left_bytes, time } => {
                let time = time.as_millis();
                write!(f, "fill {}'s disk but {left_bytes} bytes for {time} ms", name(replica))
            }
            Self::ReplaceDisk { replica } => write!(f, "replace {}'s disk", name(replica)),
            Self::Race { stopped } => {
                write!(f, "succeed the engine, which is stopped for {} ms", stopped.as_millis())
            }
            Self::Snapshot => f.write_str("snapshot"),
            Self::RemoveSnapshot => f.write_str("remove a snapshot"),
            Self::Expand => f.write_str("expand"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_plan_and_every_fault_comes_up() {
        let means = Means { replicas: 3, can_fill: true, replica_timeout: Duration::from_secs(1) };
        let plans = |seed| {
            let mut random = Random::new(seed);
            let plans = (0..300).map(|_| Plan::random(&mut random, means));
            plans.flat_map(|plan| plan.steps).collect::<Vec<_>>()
        };
        assert_eq!(plans(1), plans(1));
        assert_ne!(plans(1), plans(2));
        let kinds: std::collections::HashSet<_> =
            plans(1).iter().map(|(_, fault)| std::mem::discriminant(fault)).collect();
        assert_eq!(kinds.len(), 13);
    }
}
