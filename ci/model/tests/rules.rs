//! Each rule is needed: without it the search finds how a promise breaks, as
//! `docs/replication-rules.md` tells it. `cargo run -p ankole-model -- break RULE` shows the steps.

use ankole_model::configurations::where_it_matters;
use ankole_model::explore::explore;
use ankole_model::protocol::Protocol;
use ankole_model::rules::{Rule, Rules};
use ankole_model::state::Property;

/// Far above what the largest of these searches visits.
const STATES_MAX: usize = 1_000_000;

#[track_caller]
fn breaks(rule: Rule, property: Property) {
    let bounds = where_it_matters(rule);
    let without = Protocol { rules: Rules::ALL.without(rule), bounds, literal_p4: false };
    let found = explore(&without, STATES_MAX).counterexample;
    let found = found.unwrap_or_else(|| panic!("nothing goes wrong without {rule:?}"));
    assert_eq!(found.property, property, "without {rule:?}: {:#?}", found.steps);

    let with = Protocol { rules: Rules::ALL, bounds, literal_p4: true };
    let found = explore(&with, STATES_MAX);
    assert!(found.complete, "too much is possible where {rule:?} matters to show that it helps");
    assert!(found.counterexample.is_none(), "{rule:?} holds and doesn't help: {found:#?}");
}

/// Two engines with one generation fence each other in turn: the record isn't the second one's.
#[test]
fn engine_without_a_grant_acknowledges_beside_another() {
    breaks(Rule::GrantFirst, Property::MembersHoldAcknowledged);
}

/// A replica that still takes the older engine's write puts it over what the newer one settled.
#[test]
fn older_engine_that_is_not_refused_overwrites() {
    breaks(Rule::RefuseOlderEngine, Property::MembersHoldAcknowledged);
}

/// An old write was submitted to the disk, and lands after the newer engine was answered.
#[test]
fn write_that_outlives_the_fence_overwrites() {
    breaks(Rule::FenceBeforeAnswer, Property::MembersHoldAcknowledged);
}

/// After a reconnection a write is sent again and overwritten; the old socket's copy comes later.
#[test]
fn buffer_of_an_old_socket_overwrites_if_only_generations_count() {
    breaks(Rule::SessionsOrder, Property::MembersHoldAcknowledged);
}

/// An empty directory under a member's name is read as that member.
#[test]
fn new_disk_under_an_old_name_is_read() {
    breaks(Rule::CheckIncarnation, Property::Linearizable);
}

/// The client hears of a write that a member of the record lacks.
#[test]
fn acknowledging_before_removing_leaves_a_member_behind() {
    breaks(Rule::RemoveBeforeAcknowledge, Property::MembersHoldAcknowledged);
}

/// An engine that is cut off removes those that are well, and keeps one that isn't there.
#[test]
fn removing_without_a_ping_keeps_who_is_not_there() {
    breaks(Rule::PingBeforeChange, Property::SomebodyAnswered);
}

/// What a removed member missed was stamped before it left; marks are cleared, it returns, and the
/// delta has nothing for it.
#[test]
fn acknowledging_before_the_survivors_advanced_forgets_what_was_missed() {
    breaks(Rule::AdvanceBeforeAcknowledge, Property::MembersHoldAcknowledged);
}

/// The engine goes on with the old set, and then the arbiter applies what was given up.
#[test]
fn change_that_was_given_up_is_applied_later() {
    breaks(Rule::RepeatUntilDefinite, Property::MembersHoldAcknowledged);
}

/// The addition of a replica is applied, its answer is late, and a write is acknowledged without it.
#[test]
fn acknowledging_with_the_old_set_misses_the_added_member() {
    breaks(Rule::AcknowledgeNeedsUnion, Property::MembersHoldAcknowledged);
}

/// The removal of a member isn't applied yet; it opens the volume for another engine.
#[test]
fn reading_with_leases_of_the_smaller_set_reads_what_was_overwritten() {
    breaks(Rule::ReadNeedsLeasesOfUnion, Property::Linearizable);
}

/// A change of an older engine arrives after the newer one has changed the record.
#[test]
fn late_change_replaces_a_newer_record() {
    breaks(Rule::CompareBeforeSwap, Property::MembersHoldAcknowledged);
}

/// An older engine fails a request that its successor would have done.
#[test]
fn fenced_engine_that_answers_returns_errors() {
    breaks(Rule::FencedAnswersNothing, Property::NoErrors);
}

/// The newer engine acknowledges a write while the older still trusts its leases.
#[test]
fn answering_a_hello_before_the_lease_ran_out_lets_two_engines_serve() {
    breaks(Rule::HelloWaitsForLease, Property::Linearizable);
}

/// The same, where the replica was killed in between and has forgotten what it lent.
#[test]
fn replica_that_forgets_its_lease_lets_two_engines_serve() {
    breaks(Rule::RestartRemembersLease, Property::Linearizable);
}

/// An engine that is cut off reads its own replica while the next one writes to another.
#[test]
fn reading_without_leases_reads_what_was_overwritten() {
    breaks(Rule::ReadNeedsAllLeases, Property::Linearizable);
}

/// Nobody is left to open the volume.
#[test]
fn removing_the_last_member_leaves_nobody() {
    breaks(Rule::LastMemberStays, Property::SomebodyIsInSync);
}

/// The only member loses power, reconnects, and acknowledged writes are gone.
#[test]
fn suspect_that_reconnects_goes_on_without_what_it_lost() {
    breaks(Rule::SuspectStaysAway, Property::Linearizable);
}

/// Opening trusts a member that lost power although one has everything.
#[test]
fn suspect_that_stays_at_open_lacks_what_was_acknowledged() {
    breaks(Rule::SuspectLeavesAtOpen, Property::MembersHoldAcknowledged);
}

/// All that answered have lost power, and the one that has everything is late.
#[test]
fn opening_with_suspects_only_loses_what_the_missing_one_has() {
    breaks(Rule::OpenWaitsForTheMissing, Property::MembersHoldAcknowledged);
}

/// A write that reached one member is read there, and then not on the other.
#[test]
fn reading_before_settling_reads_what_comes_and_goes() {
    breaks(Rule::SettleBeforeRead, Property::Linearizable);
}

/// A rebuilt replica is added while it lacks a write that nobody waited for.
#[test]
fn candidate_that_does_not_confirm_is_added_behind() {
    breaks(Rule::CandidateConfirms, Property::MembersHoldAcknowledged);
}

/// A rebuilt replica is added with nothing of it on its disk; what was flushed isn't there.
#[test]
fn candidate_that_has_not_synced_loses_what_was_flushed() {
    breaks(Rule::ReadyBeforeAdd, Property::MembersKeepFlushed);
}

/// All members confirm, then all lose power; a newer engine opens with what is left, and the older
/// acknowledges what isn't. The rules don't say this one: the search found it.
#[test]
fn acknowledging_after_the_leases_ran_out_promises_what_is_lost() {
    breaks(Rule::AcknowledgeNeedsLeases, Property::MembersHoldAcknowledged);
}
