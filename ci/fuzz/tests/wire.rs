//! See `ankole_fuzz::wire`.

mod common;

use common::over_corpus;

#[test]
fn wire_message_corpus() {
    over_corpus("wire_message", ankole_fuzz::wire::message);
    over_corpus("wire_message", ankole_fuzz::wire::raw_header);
}

/// Without right sums in the corpus, nothing behind the check of the sums is ever reached.
#[test]
fn the_corpus_reaches_messages_with_data() {
    let corpus = common::corpus("wire_message");
    assert!(corpus.iter().any(|input| ankole_fuzz::wire::carries_data(input)));
}

#[test]
fn wire_raw_header() {
    bolero::check!().with_max_len(256).for_each(ankole_fuzz::wire::raw_header);
}

#[test]
fn wire_message() {
    bolero::check!().with_max_len(1024).for_each(ankole_fuzz::wire::message);
}
