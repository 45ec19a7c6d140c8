//! The arbiter: keeps the volume's record, as the manager does, and has bad days.
//!
//! It never lies: it applies a change at most once, by compare-and-swap. It may be late, lose an
//! answer, or apply a change after it was given up. Lying is for [`crate::sabotage`].

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ankole_replica::record::{Answer, Change, EngineGrant, InstanceId, Member, Record, Request};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::oracle::Oracle;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Good,
    /// Answers so much later.
    Late(Duration),
    /// Does what it is asked, and closes the connection without a word.
    LosesAnswers,
    /// Closes the connection without a word, and nothing is done.
    LosesRequests,
    /// Closes the connection, and does it so much later.
    Procrastinates(Duration),
    /// Takes connections and requests, and is silent.
    Silent,
}

pub struct Arbiter {
    record: RefCell<Record>,
    pub mood: Cell<Mood>,
    oracle: Rc<RefCell<Oracle>>,
}

impl Arbiter {
    pub fn new(in_sync: Vec<Member>, oracle: Rc<RefCell<Oracle>>) -> Rc<Self> {
        let record = Record { attach_epoch: 1, ..Record::first(in_sync) };
        Rc::new(Self { record: RefCell::new(record), mood: Cell::default(), oracle })
    }

    pub fn record(&self) -> Record {
        self.record.borrow().clone()
    }

    /// For sabotage only.
    pub fn overwrite(&self, record: Record) {
        self.record.replace(record);
    }

    /// Makes `instance` the one that may write; its client is the one that was there before.
    pub fn grant(&self, instance: InstanceId) {
        let (expected, attach_epoch) = {
            let record = self.record.borrow();
            (record.generation, record.attach_epoch)
        };
        let engine = EngineGrant { node: "here".into(), instance };
        self.answer(Request::Change {
            volume: String::new(),
            expected,
            change: Change::Grant { engine, attach_epoch },
        });
    }

    pub fn serve(self: &Rc<Self>, at: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(at)?;
        let arbiter = self.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let arbiter = arbiter.clone();
                tokio::task::spawn_local(async move {
                    // An engine that went away, or a fault that was made: it asks again.
                    let _broken = arbiter.converse(stream).await;
                });
            }
        });
        Ok(())
    }

    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut line = String::new();
        if BufReader::new(&mut stream).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let request: Request = serde_json::from_str(&line)?;
        match self.mood.get() {
            Mood::Good => {}
            Mood::Late(delay) => tokio::time::sleep(delay).await,
            Mood::LosesRequests => return Ok(()),
            Mood::LosesAnswers => {
                self.answer(request);
                return Ok(());
            }
            Mood::Procrastinates(delay) => {
                drop(stream);
                tokio::time::sleep(delay).await;
                self.answer(request);
                return Ok(());
            }
            Mood::Silent => {
                let mut nothing = [0];
                let _gone = tokio::io::AsyncReadExt::read(&mut stream, &mut nothing).await;
                return Ok(());
            }
        }
        let mut answer = serde_json::to_vec(&self.answer(request))?;
        answer.push(b'\n');
        stream.write_all(&answer).await
    }

    fn answer(&self, request: Request) -> Answer {
        let Request::Change { expected, change, .. } = request else {
            return Answer::Record(self.record());
        };
        let after = self.record.borrow().after(expected, change);
        match after {
            Ok(record) => {
                self.oracle.borrow_mut().note(describe(&record));
                self.record.replace(record.clone());
                Answer::Record(record)
            }
            Err(refused) => Answer::Refused(refused),
        }
    }
}

pub fn describe(record: &Record) -> String {
    let members: Vec<_> = record.in_sync.iter().map(|it| it.replica.to_string()).collect();
    let engine = record.engine.as_ref().map_or("nobody", |engine| &engine.instance.0);
    format!("record {}: {engine}, in sync {}", record.generation, members.join(" "))
}
