//! Situations of backups and restores; and what holds in all of them.

use std::fmt::Write;
use std::time::Duration;

use ankole_api::ApiError;
use ankole_api::backup::{BackupState, BackupView, JobProgress};
use ankole_api::job::JobResult;
use ankole_api::object::Object;
use ankole_api::objects::engine::EnginePhase;
use ankole_api::objects::job::JOB_FINALIZER;
use ankole_api::objects::volume::RESTORED;
use ankole_api::objects::{BackupSpec, Engine, JobPhase, JobSpec, JobStatus, RestoreSpec, Volume};
use expect_test::expect_file;
use jiff::Timestamp;

use super::doubtful;
use crate::node::facts::{History, JobFacts, JobFiles, JobProcess, LastWords};
use crate::node::job::{self, FINISHED_KEPT, JOB_PATIENCE, JobAction, JobPlan, memory_bytes};

const URL: &str = "file:///backups?backup=backup-1&volume=v0";

fn backup() -> JobFacts<BackupSpec> {
    of(waiting(
        r#"{"volume": "v1", "volumeUid": "u1", "node": "n1", "target": "file:///backups", "ticket": "t1"}"#,
    ))
}

fn restore() -> JobFacts<RestoreSpec> {
    let spec = r#"{"volume": "v1", "volumeUid": "u1", "node": "n1", "url": "URL", "ticket": "t1"}"#;
    let mut facts = of(waiting(&spec.replace("URL", URL)));
    facts.volume.as_mut().unwrap().spec.from_backup = Some(URL.into());
    facts
}

fn of<S: JobSpec>(job: Object<S>) -> JobFacts<S> {
    let mut volume = Volume::new(
        "v1".parse().unwrap(),
        serde_json::from_str(r#"{"sizeBytes": 2097152, "replicas": 1}"#).unwrap(),
    );
    volume.metadata.uid = "u1".into();
    volume.status.node = Some("n1".into());
    let spec = r#"{"volumeUid": "u1", "node": "n1", "wanted": {"attached": {"readOnly": false}},
        "sizeBytes": 2097152, "replicas": []}"#;
    let mut engine = Engine::new("v1".parse().unwrap(), serde_json::from_str(spec).unwrap());
    engine.status.node = "n1".into();
    engine.status.phase = Some(EnginePhase::Attached);
    engine.status.endpoint = Some("/dev/ublkb0".into());
    JobFacts {
        job: Some(job),
        volume: Some(volume),
        engine: Some(engine),
        rival: None,
        node: "n1".into(),
        files: None,
        process: None,
        history: History::default(),
        is_stopping: false,
    }
}

fn waiting<S: JobSpec>(spec: &str) -> Object<S> {
    Object::job(1, serde_json::from_str(spec).unwrap())
}

fn job_of<S: JobSpec>(facts: &mut JobFacts<S>) -> &mut Object<S> {
    facts.job.as_mut().unwrap()
}

fn runs<S: JobSpec>(facts: &mut JobFacts<S>) {
    facts.process = Some(JobProcess { pid: 11, asked_to_end: None });
    let progress = Some(JobProgress { done_bytes: 1234, total_bytes: 10_000 });
    facts.files = Some(JobFiles { progress, result: None });
    job_of(facts).status.phase = Some(JobPhase::Running);
}

fn view() -> BackupView {
    BackupView {
        name: "backup-1".into(),
        volume: "v1".into(),
        snapshot: "s1".into(),
        state: BackupState::Complete,
        url: URL.into(),
        created: "2027-01-15T08:00:00Z".into(),
        size_bytes: 2 << 20,
        new_bytes: 2 << 20,
        labels: Default::default(),
        backing_image: String::new(),
        problem: String::new(),
    }
}

fn ended_with<S: JobSpec>(facts: &mut JobFacts<S>, result: JobResult) {
    runs(facts);
    facts.process = None;
    facts.files.as_mut().unwrap().result = Some(Ok(result));
}

fn done<S: JobSpec>(facts: &mut JobFacts<S>) {
    ended_with(facts, JobResult::Done { backup: view() });
}

fn died<S: JobSpec>(facts: &mut JobFacts<S>, how: &str) {
    runs(facts);
    facts.process = None;
    facts.history.last_end = Some(how.into());
}

/// As its plan says: the next pass sees it.
fn told<S: JobSpec>(facts: &mut JobFacts<S>) {
    let status = job::plan(facts).status;
    job_of(facts).status = status;
}

fn released<S: JobSpec>(facts: &mut JobFacts<S>) {
    job_of(facts).metadata.finalizers.remove(JOB_FINALIZER);
}

type Change<S> = fn(&mut JobFacts<S>);

/// Of both kinds.
fn situations<S: JobSpec>() -> Vec<(&'static str, Change<S>)> {
    vec![
        ("its volume is attached", |_| {}),
        ("its volume isn't attached", |it| {
            it.engine.as_mut().unwrap().status.phase = Some(EnginePhase::Starting);
        }),
        ("its engine has yet to hear that it is wanted", |it| {
            it.engine.as_mut().unwrap().metadata.generation += 1;
        }),
        ("its volume is attached elsewhere", |it| {
            it.engine = None;
            it.volume.as_mut().unwrap().status.node = Some("n2".into());
        }),
        ("its volume is gone", |it| it.volume = None),
        ("its volume is another one of that name", |it| {
            it.volume.as_mut().unwrap().metadata.uid = "u2".into();
        }),
        ("its volume is being removed, and it runs", |it| {
            runs(it);
            let deleted = Some(Timestamp::UNIX_EPOCH);
            it.volume.as_mut().unwrap().metadata.deletion_timestamp = deleted;
        }),
        ("it runs", runs),
        ("it runs, and its status was lost", |it| {
            runs(it);
            job_of(it).status = JobStatus::default();
        }),
        ("whether it runs can't be told", |it| {
            runs(it);
            it.process = None;
            it.history = doubtful();
        }),
        ("its process was killed", |it| died(it, "signal: 9 (SIGKILL)")),
        ("its process was killed, and a pause is kept", |it| {
            died(it, "signal: 9 (SIGKILL)");
            it.history.hold_off = Some(Duration::from_secs(4));
        }),
        ("its process ended while no agent was there", |it| {
            runs(it);
            it.process = None;
        }),
        ("its process and its files are gone", |it| {
            runs(it);
            (it.process, it.files) = (None, None);
        }),
        ("it got no memory", |it| {
            died(it, "signal: 6 (SIGABRT)");
            let error = "memory allocation of 2097152 bytes failed".into();
            it.history.last_words = Some(LastWords { error, next: None });
        }),
        ("it has a result, and its process doesn't end", |it| {
            done(it);
            it.process = Some(JobProcess { pid: 11, asked_to_end: Some(2 * JOB_PATIENCE) });
        }),
        ("it is done", done),
        ("it failed", |it| {
            let error = ApiError::failed("the target can't be reached").next("mount it");
            ended_with(it, JobResult::Failed { error });
        }),
        ("its result can't be read", |it| {
            done(it);
            it.files.as_mut().unwrap().result = Some(Err("expected value at line 1".into()));
        }),
        ("it is done, and that is told", |it| {
            done(it);
            told(it);
        }),
        ("it failed, and that is told", |it| {
            died(it, "signal: 6 (SIGABRT)");
            told(it);
        }),
        ("it is over", |it| {
            done(it);
            told(it);
            released(it);
            mark_restored(it.volume.as_mut().unwrap());
        }),
        ("it is over, and its status was lost", |it| {
            done(it);
            released(it);
        }),
        ("it is over, and its status and its files were lost", released),
        ("the agent ends, and it waits", |it| it.is_stopping = true),
        ("the agent ends, and it runs", |it| {
            runs(it);
            it.is_stopping = true;
        }),
        ("it is deleted and runs", |it| {
            runs(it);
            job_of(it).metadata.deletion_timestamp = Some(Timestamp::UNIX_EPOCH);
        }),
        ("it is deleted and doesn't end", |it| {
            runs(it);
            job_of(it).metadata.deletion_timestamp = Some(Timestamp::UNIX_EPOCH);
            it.process.as_mut().unwrap().asked_to_end = Some(2 * JOB_PATIENCE);
        }),
        ("it is deleted and has ended", |it| {
            died(it, "exit status: 1");
            job_of(it).metadata.deletion_timestamp = Some(Timestamp::UNIX_EPOCH);
        }),
        ("it is gone, and its process runs", |it| {
            runs(it);
            it.job = None;
        }),
        ("it is gone, and its files lie there", |it| {
            done(it);
            it.job = None;
        }),
    ]
}

fn mark_restored(volume: &mut Volume) {
    volume.metadata.annotations.insert(RESTORED.into(), String::new());
}

/// Of those that fill a volume.
fn of_restores() -> Vec<(&'static str, Change<RestoreSpec>)> {
    vec![
        ("its volume has been restored", |it| {
            mark_restored(it.volume.as_mut().unwrap());
        }),
        ("it is over, and its volume's mark was lost", |it| {
            done(it);
            told(it);
            released(it);
        }),
        ("it is deleted, and its volume was made for another backup", |it| {
            job_of(it).metadata.deletion_timestamp = Some(Timestamp::UNIX_EPOCH);
            it.volume.as_mut().unwrap().spec.from_backup = Some("file:///other".into());
        }),
        ("its volume was made for another backup", |it| {
            it.volume.as_mut().unwrap().spec.from_backup = Some("file:///other".into());
        }),
        ("another one fills the volume", |it| {
            it.rival = Some("restore-0000000000000".parse().unwrap());
        }),
    ]
}

fn changed<S: JobSpec>(mut facts: JobFacts<S>, change: Change<S>) -> JobFacts<S> {
    change(&mut facts);
    facts
}

fn backups() -> Vec<(&'static str, JobFacts<BackupSpec>)> {
    situations().into_iter().map(|(name, change)| (name, changed(backup(), change))).collect()
}

fn restores() -> Vec<(&'static str, JobFacts<RestoreSpec>)> {
    let all = situations().into_iter().chain(of_restores());
    all.map(|(name, change)| (name, changed(restore(), change))).collect()
}

#[test]
fn job_plans() {
    let mut text = String::from("# Backups\n");
    for (name, facts) in backups() {
        writeln!(text, "## {name}\n{}", job::plan(&facts)).unwrap();
    }
    text.push_str("# Restores\n");
    for (name, facts) in restores() {
        writeln!(text, "## {name}\n{}", job::plan(&facts)).unwrap();
    }
    expect_file!["../../../tests/golden/job.txt"].assert_eq(&text);
}

fn has(plan: &JobPlan, action: JobAction) -> bool {
    plan.actions.contains(&action)
}

/// In every situation, with every other thing that may be true besides: none is started beside a
/// process that may live, after its result, or without its mark; what it holds is let go only when
/// nothing of it lives and what came of it is stored; what is over stays as it was told.
fn keeps_its_promises<S: JobSpec>(name: &str, facts: &JobFacts<S>) {
    let (volumes, engines) = ([facts.volume.clone(), None], [facts.engine.clone(), None]);
    let process = JobProcess { pid: 11, asked_to_end: None };
    let files = Some(JobFiles::default());
    let endings = [None, Some(Timestamp::UNIX_EPOCH)];
    for (volume, engine) in volumes.iter().flat_map(|it| engines.iter().map(move |e| (it, e))) {
        for process in [None, Some(process.clone()), facts.process.clone()] {
            for files in [None, files.clone(), facts.files.clone()] {
                for ending in endings {
                    for has_mark in [true, false] {
                        let mut facts = facts.clone();
                        (facts.volume, facts.engine) = (volume.clone(), engine.clone());
                        (facts.process, facts.files) = (process.clone(), files.clone());
                        if let Some(job) = &mut facts.job {
                            job.metadata.deletion_timestamp = ending;
                            if !has_mark {
                                job.metadata.finalizers.clear();
                            }
                        }
                        check(name, &facts);
                    }
                }
            }
        }
    }
}

fn check<S: JobSpec>(name: &str, facts: &JobFacts<S>) {
    let plan = job::plan(facts);
    let about = format!("{name}: {facts:?}\n{plan}");
    let may_live = facts.process.is_some() || facts.history.doubt.is_some();
    let has_result = facts.files.as_ref().is_some_and(|files| files.result.is_some());
    let job = facts.job.as_ref();
    let is_told = job.is_some_and(|job| job.status.phase.is_some_and(JobPhase::is_final));
    if has(&plan, JobAction::Start) {
        let is_there = facts.volume.is_some() && facts.engine.is_some();
        assert!(!may_live && !has_result && !is_told && is_there, "{about}");
        assert!(job.is_some_and(|job| !job.is_over() && !job.is_ending()), "{about}");
        assert!(!S::FILLS_VOLUME || facts.rival.is_none(), "{about}");
    }
    let lets_go = has(&plan, JobAction::TakeBackTicket) || has(&plan, JobAction::Release);
    let is_deleted = job.is_some_and(Object::is_ending);
    assert!(!lets_go || (!may_live && (is_told || is_deleted)), "{about}");
    assert!(!has(&plan, JobAction::RemoveFiles) || (!may_live && job.is_none()), "{about}");
    let is_done = job.is_some_and(|job| job.status.phase == Some(JobPhase::Done));
    let marks = has(&plan, JobAction::MarkRestored);
    assert!(!marks || (S::FILLS_VOLUME && is_done && !may_live), "{about}");
    if has(&plan, JobAction::RemoveVolume) {
        let waits = facts.volume.as_ref().is_some_and(Volume::is_being_restored);
        assert!(S::FILLS_VOLUME && waits && !may_live && !is_done, "{about}");
        assert!(job.is_some_and(|job| !job.is_over()) && facts.rival.is_none(), "{about}");
    }
    if let Some(job) = job.filter(|_| is_told) {
        let (now, then) = (&plan.status, &job.status);
        assert_eq!((now.phase, &now.backup, &now.error), (then.phase, &then.backup, &then.error));
    }
    // Nobody waits for what will never come: something is done, told, or looked at soon.
    let is_over = plan.status.phase.is_some_and(JobPhase::is_final) || job.is_none();
    let is_soon = plan.look_again < Duration::from_secs(60);
    let goes_on = !plan.actions.is_empty() || !plan.status.conditions.is_empty() || is_soon;
    assert!(is_over || goes_on || facts.is_stopping, "{about}");
}

#[test]
fn in_no_situation_is_a_job_begun_twice_or_let_go_before_it_is_told() {
    backups().iter().for_each(|(name, facts)| keeps_its_promises(name, facts));
    restores().iter().for_each(|(name, facts)| keeps_its_promises(name, facts));
}

/// The object comes back without its status when a cluster is restored, and its volume too: a restore
/// that was over would fill it again, over what its users have written since.
#[test]
fn a_restore_that_was_over_never_fills_its_volume_again() {
    let lost = changed(restore(), released);
    assert!(lost.volume.as_ref().unwrap().is_being_restored());
    let plan = job::plan(&lost);
    assert_eq!(plan.actions, []);
    assert_eq!(plan.status.phase, Some(JobPhase::Failed));
}

#[test]
fn the_newest_that_are_over_are_remembered() {
    let made = |number: u64| {
        let mut facts = backup();
        let job = job_of(&mut facts);
        job.metadata = Object::job(number, job.spec.clone()).metadata;
        let at = Timestamp::from_second(1000 - number as i64).unwrap();
        job.metadata.creation_timestamp = Some(at);
        job.clone()
    };
    let mut jobs: Vec<_> = (0..FINISHED_KEPT as u64 + 3).map(made).collect();
    assert!(job::to_forget(&jobs).is_empty(), "they run");
    jobs.iter_mut().skip(1).for_each(|job| job.metadata.finalizers.clear());
    let oldest = jobs.iter().rev().take(2).map(|job| job.name().clone());
    assert_eq!(job::to_forget(&jobs), oldest.collect::<Vec<_>>());
}

#[test]
fn a_larger_volume_needs_longer_lists() {
    assert_eq!(memory_bytes(2 << 20), (256 << 20) + 512);
    assert_eq!(memory_bytes(1 << 40), (256 << 20) + (256 << 20));
}
