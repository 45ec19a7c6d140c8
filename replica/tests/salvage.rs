//! Which copy a person should trust when no member can open the volume: stories, and random
//! histories whose truth is known.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use ankole_replica::inspect::{Content, Evidence, Found, ReplicaEvidence};
use ankole_replica::record::{Member, Record};
use ankole_replica::salvage::{Choice, Exhibit, Turn, choose, turn};
use ankole_replica::store::ReplicaState;
use ankole_replica::types::{Epoch, Fence, Generation, Incarnation, ReplicaId, Session};
use proptest::collection::vec;
use proptest::prelude::*;

const VOLUME: &str = "v1";

fn generation(number: u64) -> Generation {
    Generation(number.try_into().unwrap())
}

fn id(number: usize) -> ReplicaId {
    format!("r{number}").as_str().into()
}

fn member(number: usize) -> Member {
    Member { replica: id(number), incarnation: Incarnation(number as u128) }
}

fn members(numbers: &[usize]) -> Vec<Member> {
    numbers.iter().map(|number| member(*number)).collect()
}

fn record(at: u64, in_sync: &[usize]) -> Record {
    Record { generation: generation(at), ..Record::first(members(in_sync)) }
}

fn exhibit(number: usize, found: Found) -> Exhibit {
    let directory = format!("/disk/{VOLUME}-r{number}").into();
    Exhibit { replica: id(number), evidence: Evidence { directory, held: None, found } }
}

/// A sound, continuous member of `set`, which has seen nothing newer.
fn copy(number: usize, synced: u64, set: &[usize]) -> Exhibit {
    let replica = ReplicaEvidence {
        volume: VOLUME.into(),
        replica: id(number),
        incarnation: Incarnation(number as u128),
        fence: Some(Fence { generation: generation(synced), session: Session(1) }),
        state: ReplicaState::Member,
        failure: None,
        synced_gen: Some(generation(synced)),
        synced_set: members(set),
        epoch: Epoch::default(),
        content: Some(Content {
            continuous: true,
            continuity: "the test says so".into(),
            partial: false,
            marked_regions: 0,
            unverified_blocks: 0,
            size_bytes: 2 << 20,
            data_bytes: 0,
            layers: 1,
            snapshots: vec![],
        }),
        problems: vec![],
    };
    exhibit(number, Found::Replica(Box::new(replica)))
}

trait Change {
    fn replica(self, change: impl FnOnce(&mut ReplicaEvidence)) -> Exhibit;
    fn content(self, change: impl FnOnce(&mut Content)) -> Exhibit;
    fn failed(self) -> Exhibit;
    fn suspect(self) -> Exhibit;
}

impl Change for Exhibit {
    fn replica(mut self, change: impl FnOnce(&mut ReplicaEvidence)) -> Exhibit {
        let Found::Replica(replica) = &mut self.evidence.found else { panic!("it is a copy") };
        change(replica);
        self
    }
    fn content(self, change: impl FnOnce(&mut Content)) -> Exhibit {
        self.replica(|replica| change(replica.content.as_mut().unwrap()))
    }
    fn failed(self) -> Exhibit {
        self.suspect().replica(|replica| replica.state = ReplicaState::Failed)
    }
    fn suspect(self) -> Exhibit {
        self.content(|content| content.continuous = false)
    }
}

fn best(exhibits: &[Exhibit], record: &Record) -> Choice {
    choose(VOLUME, exhibits, Some(record), None)
}

fn chosen(choice: &Choice) -> Option<ReplicaId> {
    choice.chosen.as_ref().map(|member| member.replica.clone())
}

/// The record is lost. The copies still tell: the newest set that any of them knows is whole, so
/// nobody can have left it, or joined it, without one of them knowing.
#[test]
fn without_a_record_the_newest_set_that_the_copies_know_decides() {
    let whole = [copy(1, 9, &[1, 2]), copy(2, 9, &[1, 2]), copy(3, 5, &[1, 2, 3])];
    assert_eq!(turn(VOLUME, &whole, None, true), Turn::RecordLost);
    let choice = choose(VOLUME, &whole, None, None);
    assert_eq!((chosen(&choice), choice.doubts.len()), (Some(id(1)), 0), "{choice:?}");

    let only_stale = [exhibit(1, Found::Missing), exhibit(2, Found::Missing), whole[2].clone()];
    let choice = choose(VOLUME, &only_stale, None, None);
    assert_eq!(chosen(&choice), Some(id(3)));
    assert_eq!(choice.doubts.len(), 2, "r1 and r2 were in sync with it: {choice:?}");

    let never = copy(1, 9, &[1]).replica(|replica| {
        (replica.state, replica.synced_gen) = (ReplicaState::Ready, None);
    });
    let choice = choose(VOLUME, &[never], None, None);
    assert!(choice.doubts[0].contains("doesn't know when it was in sync"), "{choice:?}");
    assert_eq!(Record::anew(member(1), generation(9)).generation, generation(10));
}

/// r3 was away since g5 and was being greeted to be rebuilt when the others failed: its fence is
/// the highest of all.
#[test]
fn a_stale_replica_with_a_raised_fence_never_wins() {
    let raised = Some(Fence { generation: generation(99), session: Session(1) });
    let exhibits = [
        copy(1, 9, &[1, 2]).failed(),
        copy(2, 9, &[1, 2]).failed(),
        copy(3, 5, &[1, 2, 3]).replica(|replica| replica.fence = raised),
    ];
    let choice = best(&exhibits, &record(9, &[1, 2]));
    assert_eq!(chosen(&choice), Some(id(1)), "{choice:?}");
    assert_eq!(choice.above, Some(generation(99)), "but the next generation is above it");
    let named = choose(VOLUME, &exhibits, Some(&record(9, &[1, 2])), Some(&id(3)));
    assert_eq!(chosen(&named), Some(id(3)));
    assert!(named.doubts[0].contains("in sync later than r3, in g9"), "{named:?}");
}

#[test]
fn a_missing_member_of_the_newest_set_demands_the_explicit_yes() {
    let exhibits = [copy(1, 9, &[1, 2]).failed(), exhibit(2, Found::Missing)];
    let choice = best(&exhibits, &record(9, &[1, 2]));
    assert_eq!((chosen(&choice), &choice.missing), (Some(id(1)), &vec![member(2)]));
    assert!(choice.doubts[0].contains("r2") && choice.doubts[0].contains("gone"), "{choice:?}");
    // A directory that was made anew isn't the member that it was.
    let other = Incarnation(77);
    let anew = copy(2, 9, &[1, 2]).replica(|replica| {
        (replica.incarnation, replica.synced_gen) = (other, None);
        replica.state = ReplicaState::New;
    });
    let choice = best(&[exhibits[0].clone(), anew], &record(9, &[1, 2]));
    assert!(choice.doubts[0].contains("made anew"), "{choice:?}");
    let all = [exhibits[0].clone(), copy(2, 9, &[1, 2]).failed()];
    assert!(best(&all, &record(9, &[1, 2])).doubts.is_empty(), "both are there");
}

/// The only one that was in sync last is gone; what the others know of it is a generation in the
/// record.
#[test]
fn when_the_records_whole_set_is_lost_the_choice_may_be_stale() {
    let exhibits = [exhibit(1, Found::Missing), copy(2, 6, &[2, 3]), copy(3, 6, &[2, 3])];
    let choice = best(&exhibits, &record(9, &[1]));
    assert!(choice.missing.is_empty());
    assert!(choice.doubts[0].contains("says that r1 had every"), "{choice:?}");
}

#[test]
fn copies_of_one_generation_are_ranked_by_what_could_be_wrong_with_them() {
    let set = [1, 2, 3, 4];
    let rebuilt = |number, blocks| {
        copy(number, 9, &set).suspect().content(|content| content.unverified_blocks = blocks)
    };
    let exhibits = [copy(1, 9, &set).failed(), rebuilt(2, 8), rebuilt(3, 7), copy(4, 9, &set)];
    let choice = best(&exhibits, &record(9, &set));
    assert_eq!(choice.order, [id(4), id(3), id(2), id(1)]);
    let later = [copy(1, 10, &[1]).failed(), copy(2, 9, &set)];
    assert_eq!(chosen(&best(&later, &record(10, &[1]))), Some(id(1)), "later goes first");
}

/// Half of an old copy and half of a newer one is neither.
#[test]
fn what_a_rebuild_was_filling_is_never_taken_even_if_a_person_names_it() {
    let half = copy(1, 9, &[1]).content(|content| content.partial = true);
    let choice = choose(VOLUME, &[half], Some(&record(9, &[1])), Some(&id(1)));
    assert_eq!(choice.chosen, None);
    assert!(choice.why.contains("a rebuild was filling it"), "{choice:?}");
}

#[test]
fn an_empty_copy_and_one_of_another_volume_are_not_taken() {
    let new = copy(1, 1, &[]).replica(|replica| {
        (replica.state, replica.synced_gen) = (ReplicaState::New, None);
        replica.incarnation = Incarnation(77);
    });
    let other = copy(2, 9, &[2]).replica(|replica| replica.volume = "v2".into());
    let swapped = copy(4, 9, &[4]);
    let swapped = Exhibit { replica: id(3), ..swapped };
    let choice = best(&[new, other, swapped], &record(5, &[1]));
    assert_eq!(choice.chosen, None);
    for word in ["never in sync", "volume v2", "holds r4"] {
        assert!(choice.why.contains(word), "{choice:?}");
    }
}

#[test]
fn a_member_that_can_open_leaves_nothing_to_choose() {
    let exhibits = [copy(1, 9, &[1, 2]), exhibit(2, Found::Missing)];
    let turn =
        |exhibits: &[Exhibit], client| turn(VOLUME, exhibits, Some(&record(9, &[1, 2])), client);
    assert_eq!(turn(&exhibits, true), Turn::CanOpen { members: vec![id(1)] });
    assert_eq!(turn(&[copy(1, 9, &[1, 2]).failed()], true), Turn::NoMember);
    assert_eq!(turn(&[copy(3, 9, &[1, 2, 3])], true), Turn::NoMember, "r3 isn't a member");
}

/// A power cut of r1; r2 may hold what r1 lost. Without a client that has seen an answer the engine
/// goes on by itself; with one a person decides.
#[test]
fn a_suspect_member_alone_is_a_persons_choice_while_a_client_waits() {
    let record = record(9, &[1, 2]);
    let alone = [copy(1, 9, &[1, 2]).suspect(), exhibit(2, Found::Missing)];
    assert_eq!(
        turn(VOLUME, &alone, Some(&record), true),
        Turn::MemberMissing { missing: vec![id(2)] }
    );
    assert_eq!(turn(VOLUME, &alone, Some(&record), false), Turn::CanOpen { members: vec![id(1)] });
    let both = [copy(1, 9, &[1, 2]).suspect(), copy(2, 9, &[1, 2]).suspect()];
    assert_eq!(
        turn(VOLUME, &both, Some(&record), true),
        Turn::CanOpen { members: vec![id(1), id(2)] }
    );
}

/// The record names r3, which left the set later: opened by it, r3 would be read as if it had
/// everything.
#[test]
fn a_record_that_is_older_than_a_fence_was_rolled_back() {
    let exhibits = [copy(1, 9, &[1, 2]), copy(2, 9, &[1, 2]), copy(3, 5, &[1, 2, 3])];
    let old = record(5, &[1, 2, 3]);
    let rolled_back = Turn::RolledBack { by: id(2), seen: generation(9) };
    assert_eq!(turn(VOLUME, &exhibits, Some(&old), false), rolled_back);
    let choice = best(&exhibits, &old);
    assert_eq!((chosen(&choice), choice.doubts.len()), (Some(id(1)), 0), "{choice:?}");
}

#[test]
fn snapshots_that_would_be_lost_are_named() {
    let with = |exhibit: Exhibit, names: &[&str]| {
        exhibit.content(|c| c.snapshots = names.iter().map(|name| (*name).into()).collect())
    };
    let exhibits =
        [with(copy(1, 9, &[1]).failed(), &["s1"]), with(copy(2, 8, &[1, 2]), &["s1", "s2"])];
    let choice = best(&exhibits, &record(9, &[1]));
    assert!(choice.losses.iter().any(|loss| loss.contains("only r2 has: s2")), "{choice:?}");
}

/// How a volume lived: the in-sync set of each generation, whether the last was made durable on
/// every member, and what is left of the directories.
#[derive(Clone, Debug)]
struct History {
    sets: Vec<Vec<usize>>,
    /// Of the last generation, who heard of it; all of its members, or the acknowledgements that
    /// need it never came.
    heard: Vec<bool>,
    lost: Vec<bool>,
    failed: Vec<bool>,
    suspect: Vec<bool>,
    fences: Vec<u64>,
}

const REPLICAS: usize = 4;

fn history() -> impl Strategy<Value = History> {
    let set = (1_u32..1 << REPLICAS)
        .prop_map(|bits| (1..=REPLICAS).filter(|r| bits >> (r - 1) & 1 == 1).collect::<Vec<_>>());
    let flags = || vec(any::<bool>(), REPLICAS);
    (vec(set, 1..6), flags(), flags(), flags(), flags(), vec(0_u64..20, REPLICAS)).prop_map(
        |(mut sets, heard, lost, failed, suspect, fences)| {
            // A change keeps a member, or the volume could not have gone on.
            for at in 1..sets.len() {
                let before = sets[at - 1].clone();
                if !sets[at].iter().any(|member| before.contains(member)) {
                    sets[at].push(before[0]);
                    sets[at].sort_unstable();
                }
            }
            History { sets, heard, lost, failed, suspect, fences }
        },
    )
}

impl History {
    fn exhibits(&self) -> Vec<Exhibit> {
        let last = self.sets.len() - 1;
        let synced = |replica: usize| {
            (0..=last).rev().find(|&at| {
                self.sets[at].contains(&replica) && (at < last || self.heard[replica - 1])
            })
        };
        let exhibit = |replica: usize| {
            let at = replica - 1;
            let Some(synced) = synced(replica).filter(|_| !self.lost[at]) else {
                return exhibit(replica, Found::Missing);
            };
            let mut copy = copy(replica, synced as u64 + 1, &self.sets[synced]);
            if self.suspect[at] {
                copy = copy.suspect();
            }
            if self.failed[at] {
                copy = copy.failed();
            }
            // Those that came back to be rebuilt have seen more than they hold.
            let seen = generation((synced as u64 + 1).max(self.fences[at]));
            copy.replica(|replica| {
                replica.fence = Some(Fence { generation: seen, session: Session(1) });
            })
        };
        (1..=REPLICAS).map(exhibit).collect()
    }

    fn record(&self) -> Record {
        record(self.sets.len() as u64, self.sets.last().unwrap())
    }

    /// The last generation under which a write can have been acknowledged.
    fn acknowledged(&self) -> u64 {
        let heard = self.sets.last().unwrap().iter().all(|replica| self.heard[replica - 1]);
        self.sets.len() as u64 - u64::from(!heard)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The one lie that can't be told: "nothing is stale" about a copy that lacks what was
    /// acknowledged.
    #[test]
    fn a_choice_without_a_doubt_lacks_nothing(history in history()) {
        let exhibits = history.exhibits();
        let choice = best(&exhibits, &history.record());
        let Some(chosen) = chosen(&choice) else { return Ok(()) };
        let copy = exhibits.iter().find(|exhibit| exhibit.replica == chosen).unwrap();
        let synced = copy.evidence.replica().unwrap().synced_gen.unwrap().0.get();
        prop_assert!(
            synced >= history.acknowledged() || !choice.doubts.is_empty(),
            "{chosen} of g{synced} lacks g{}: {choice:?}", history.acknowledged()
        );
    }

    /// Neither the fences nor the order in which the directories were found matter.
    #[test]
    fn fences_and_order_decide_nothing(history in history(), fences in vec(1_u64..99, REPLICAS)) {
        let record = history.record();
        let first = best(&history.exhibits(), &record);
        let mut other = history.exhibits();
        for (exhibit, fence) in other.iter_mut().zip(fences) {
            if let Found::Replica(replica) = &mut exhibit.evidence.found {
                let generation = generation(fence);
                replica.fence = Some(Fence { generation, session: Session(9) });
            }
        }
        other.reverse();
        let second = best(&other, &record);
        prop_assert_eq!((first.order, first.chosen), (second.order, second.chosen));
    }

    /// A volume that its members can open isn't touched.
    #[test]
    fn who_can_open_is_never_salvaged(history in history()) {
        let history = History { fences: vec![0; REPLICAS], ..history };
        let (exhibits, record) = (history.exhibits(), history.record());
        let whole = |member: &Member| exhibits.iter().any(|exhibit| {
            let at = record.in_sync.iter().position(|one| one == member);
            at.is_some() && exhibit.replica == member.replica
                && exhibit.evidence.replica().is_some_and(|replica| {
                    replica.state != ReplicaState::Failed
                        && replica.content.as_ref().unwrap().continuous
                })
        });
        let can_open = record.in_sync.iter().any(whole);
        let turn = turn(VOLUME, &exhibits, Some(&record), true);
        prop_assert!(!can_open || matches!(turn, Turn::CanOpen { .. }), "{turn:?}");
    }
}

/// A directory that went back in time says "in sync", and continuous; the others know better.
#[test]
fn an_older_copy_of_a_member_is_no_member_and_comes_after_what_it_was() {
    let at = |number, begun, agreed| {
        copy(number, 5, &[1, 2]).replica(|replica| replica.epoch = Epoch { begun, agreed })
    };
    let exhibits = [at(1, 7, 7), at(2, 12, 12)];
    let sound = Turn::CanOpen { members: vec![id(2)] };
    assert_eq!(turn(VOLUME, &exhibits, Some(&record(5, &[1, 2])), true), sound);
    assert_eq!(choose(VOLUME, &exhibits, Some(&record(5, &[1, 2])), None).order, [id(2), id(1)]);
}
