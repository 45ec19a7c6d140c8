//! See `ankole_fuzz::share`.

mod common;

use common::over_corpus;

#[test]
fn share_compounds_corpus() {
    over_corpus("share_compounds", ankole_fuzz::share::compounds);
    over_corpus("share_compounds_found", ankole_fuzz::share::compounds);
}

/// What fails at its first operation would test nothing behind it.
#[test]
fn each_compound_of_the_corpus_succeeds() {
    for input in common::corpus("share_compounds") {
        let statuses = ankole_fuzz::share::statuses(&input);
        assert!(statuses.len() > 3 && statuses.iter().all(|&status| status == 0), "{statuses:?}");
    }
}

#[test]
fn share_record() {
    bolero::check!().with_max_len(512).for_each(ankole_fuzz::share::record);
}

#[test]
fn share_compounds() {
    bolero::check!().with_max_len(2048).for_each(ankole_fuzz::share::compounds);
}

/// What is next to a good message goes further than what is far from any.
#[test]
fn share_compounds_damaged() {
    let corpus = common::corpus("share_compounds");
    bolero::check!().with_type::<(u8, Vec<(u16, u8)>)>().for_each(|(which, changes)| {
        let mut input = corpus[usize::from(*which) % corpus.len()].clone();
        for &(at, byte) in changes.iter().take(8) {
            let at = usize::from(at) % input.len();
            input[at] = byte;
        }
        ankole_fuzz::share::compounds(&input);
    });
}
