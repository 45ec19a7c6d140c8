//! See `ankole_fuzz::nbd`. Each target also runs over its corpus, whatever bolero draws.

mod common;

use common::over_corpus;

#[test]
fn nbd_session_corpus() {
    over_corpus("nbd_session", ankole_fuzz::nbd::session);
}

#[test]
fn nbd_requests_corpus() {
    over_corpus("nbd_requests", ankole_fuzz::nbd::requests);
}

/// A corpus of sessions that all end in the handshake would test half of what it says.
#[test]
fn the_corpus_reaches_the_transmission_phase() {
    use ankole_blockdev::nbd::handshake::{ExportDescription, Handshake, Progress};
    let input = include_bytes!("../corpus/nbd_session/go_and_every_request");
    let export = ExportDescription { name: "v1", size_bytes: 64 << 20, is_read_only: false };
    let (mut handshake, mut rest) = (Handshake::default(), &input[..]);
    loop {
        match handshake.receive(rest, &export, &mut Vec::new()) {
            Ok(Progress::Handled { bytes }) => rest = &rest[bytes..],
            Ok(Progress::Transmission { bytes, negotiated }) => {
                assert!(negotiated.structured_replies && negotiated.base_allocation);
                assert!(rest.len() > bytes, "requests follow");
                return;
            }
            other => panic!("the handshake ended in {other:?}"),
        }
    }
}

#[test]
fn nbd_session() {
    bolero::check!().with_max_len(4096).for_each(ankole_fuzz::nbd::session);
}

#[test]
fn nbd_requests() {
    bolero::check!().with_max_len(4096).for_each(ankole_fuzz::nbd::requests);
}
