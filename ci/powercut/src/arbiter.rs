//! The arbiter of one volume, on a unix socket: keeps every version of the record, so that a power
//! cut can be given the one of its moment.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ankole_replica::record::{Answer, Change, EngineGrant, InstanceId, Record, Request};
use ankole_replica::types::Generation;

use crate::oracle::{Clock, Moment};

/// Clones are the same arbiter. Serves until the program ends.
#[derive(Clone)]
pub struct Arbiter {
    clock: Clock,
    records: Arc<Mutex<Vec<(Moment, Record)>>>,
}

impl Arbiter {
    pub fn start(socket: &Path, record: Record, clock: Clock) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let records = Arc::new(Mutex::new(vec![(clock.now(), record)]));
        let arbiter = Self { clock, records };
        let serving = arbiter.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let arbiter = serving.clone();
                // An engine that is killed leaves half a line; nothing follows from it.
                std::thread::spawn(move || drop(arbiter.converse(connection)));
            }
        });
        Ok(arbiter)
    }

    fn converse(&self, connection: UnixStream) -> io::Result<()> {
        let mut writer = connection.try_clone()?;
        for line in BufReader::new(connection).lines() {
            let answer = match serde_json::from_str(&line?) {
                Ok(Request::Read { .. }) => Answer::Record(self.record()),
                Ok(Request::Change { expected, change, .. }) => self.change(expected, change),
                Err(error) => Answer::Error { message: error.to_string() },
            };
            let mut line = serde_json::to_vec(&answer)?;
            line.push(b'\n');
            writer.write_all(&line)?;
        }
        Ok(())
    }

    fn records(&self) -> std::sync::MutexGuard<'_, Vec<(Moment, Record)>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn record(&self) -> Record {
        self.records().last().expect("the first one stays").1.clone()
    }

    pub fn record_at(&self, at: Moment) -> Record {
        let records = self.records();
        let newest = records.iter().rev().find(|(since, _)| *since <= at);
        newest.unwrap_or(&records[0]).1.clone()
    }

    fn change(&self, expected: Generation, change: Change) -> Answer {
        let mut records = self.records();
        match records.last().expect("the first one stays").1.after(expected, change) {
            Ok(record) => {
                records.push((self.clock.now(), record.clone()));
                Answer::Record(record)
            }
            Err(refused) => Answer::Refused(refused),
        }
    }

    /// Lets a new engine process in, and nobody else.
    pub fn grant(&self) -> InstanceId {
        let record = self.record();
        let instance = InstanceId(format!("e{}", record.generation.0));
        let engine = EngineGrant { node: "here".into(), instance: instance.clone() };
        let attach_epoch = record.attach_epoch + 1;
        self.change(record.generation, Change::Grant { engine, attach_epoch });
        instance
    }
}
