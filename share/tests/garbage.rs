//! Bytes that no client would send: they are answered with an error or not at all, and nothing worse.

mod client;

use ankole_share::ops::Export;
use ankole_share::tree::memory::MemoryTree;
use client::{Client, Create, Ops};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn export() -> Arc<Export> {
    let lease = Duration::from_secs(20);
    Arc::new(Export::new(Box::<MemoryTree>::default(), Instant::now(), 1, lease))
}

fn carrier(export: &Arc<Export>) -> impl FnMut(&[u8]) -> Vec<u8> + use<> {
    let export = export.clone();
    move |message: &[u8]| {
        let mut reply = Vec::new();
        export.answer(Instant::now(), message, &mut reply).expect("it is a call");
        reply
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = export().answer(Instant::now(), &bytes, &mut Vec::new());
    }

    /// Each operation's number with any arguments, in a session, after a file is there.
    #[test]
    fn any_arguments_of_any_operation_are_answered(
        calls in prop::collection::vec((0u32..80, prop::collection::vec(any::<u8>(), 0..200)), 1..20)
    ) {
        let export = export();
        let mut client = Client::new(carrier(&export), "a");
        client.minor = 2;
        let (file, _) = client.open("file", 3, 0);
        for (number, mut arguments) in calls {
            arguments.truncate(arguments.len() / 4 * 4);
            let ops = Ops::default().put(&file).save().op(number, |e| e.fixed(&arguments));
            if client.call(ops).status == ankole_share::wire::status::Status::BadSession.number() {
                return Ok(()); // it has ended its session
            }
        }
    }

    /// A real compound with some of its bytes changed or cut off.
    #[test]
    fn a_compound_that_was_damaged_on_its_way_is_answered(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let export = export();
        let mut client = Client::new(carrier(&export), "a");
        let (file, open) = client.open("file", 3, 0);
        client.sequence += 1;
        let ops = Ops::default()
            .put_root()
            .open("o", 3, 0, Create::Exclusive(b"verifier"), "other")
            .put(&file)
            .write(open, 5, 0, b"data")
            .lock(open, "owner", true, 0, 100)
            .read_directory(0, 1000)
            .attributes(&[1, 3, 4, 33, 36]);
        let mut message = client.sequenced(ops);
        for (at, byte) in changes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        if cut {
            message.truncate(end.index(message.len()));
        }
        let _ = export.answer(Instant::now(), &message, &mut Vec::new());
    }
}
