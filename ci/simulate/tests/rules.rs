//! Each rule of `docs/replication-rules.md` has a switch that breaks it, and with each of these the
//! simulator has seen something go wrong.

use std::collections::BTreeSet;
use std::path::Path;

use ankole_simulate::Mutation;

/// Rules about what isn't simulated: where their proof is.
const ELSEWHERE: &[(&str, &str)] = &[
    // Nobody is granted a volume by a record that went back: the manager looks at what replicas say.
    ("8", "manager/plan/src/volume/scenarios.rs"),
    // What an index page is: each has one region, and names it.
    ("15", "replica/src/chain/index.rs"),
    // What a kernel does with requests that were under way when its server was killed.
    ("22", "ci/vm/tests/devices.guest"),
];

/// What a switch calls the procedures of the rules' chapter 5.
const PROCEDURES: &[(&str, &str)] = &[
    ("Open", "open"),
    ("Settle a range", "settle"),
    ("Remove", "remove"),
    ("Rebuild C", "rebuild"),
    ("Promote C", "promote"),
    ("Snapshot", "snapshot"),
    ("Remove a snapshot", "join"),
];

/// More seeds than that would be luck.
const SEEDS_MAX: u64 = 300;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The numbers of the rules, and the names of the procedures.
fn rules() -> Vec<String> {
    let text = text("docs/replication-rules.md");
    let numbered = |line: &str| {
        let (number, rest) = line.split_once(". ")?;
        let is_rule = number.starts_with(|first: char| first.is_ascii_digit())
            && rest.starts_with('*')
            && !rest.starts_with("**");
        is_rule.then(|| number.to_owned())
    };
    let procedure = |line: &str| {
        let (name, _) = line.strip_prefix("**")?.split_once("**")?;
        let name = name.split(" (").next()?;
        let known = PROCEDURES.iter().find(|(of, _)| *of == name);
        Some(known.unwrap_or_else(|| panic!("nobody breaks the procedure {name:?}")).1.to_owned())
    };
    let procedures = text.split("\n## ").find(|chapter| chapter.starts_with("5. Procedures"));
    let procedures = procedures.expect("there is a chapter of procedures").lines();
    text.lines().filter_map(numbered).chain(procedures.filter_map(procedure)).collect()
}

#[test]
fn each_rule_can_be_broken_or_is_proved_elsewhere() {
    let rules = rules();
    assert!(rules.len() >= 25 + PROCEDURES.len(), "the rules are told in another way: {rules:?}");
    let broken: BTreeSet<_> =
        Mutation::ALL.iter().filter_map(|it| it.rule().split(' ').next()).collect();
    for rule in &rules {
        let elsewhere = ELSEWHERE.iter().find(|(of, _)| of == rule).map(|(_, where_)| *where_);
        assert!(
            broken.contains(rule.as_str()) != elsewhere.is_some(),
            "rule {rule} has no switch in replica/src/mutation.rs (or one, and is said to have none)"
        );
        assert!(elsewhere.is_none_or(|path| root().join(path).exists()), "{elsewhere:?} is gone");
    }
    // What is promised (P5), what readers see, and what may take how long isn't numbered.
    let others = |rule: &str| rule.starts_with('P') || ["cost", "readers"].contains(&rule);
    let known = |rule: &&&str| rules.iter().any(|it| it == **rule) || others(rule);
    let unknown: Vec<_> = broken.iter().filter(|rule| !known(rule)).collect();
    assert!(unknown.is_empty(), "there are no such rules: {unknown:?}");
}

/// The table is made by `simulate --mutations --from 0`.
#[test]
fn the_table_says_of_each_switch_how_soon_it_was_noticed() {
    let readme = text("ci/simulate/README.md");
    for mutation in Mutation::ALL {
        let row = readme.lines().find(|line| line.contains(&format!("| `{mutation:?}` |")));
        let row = row.unwrap_or_else(|| panic!("{mutation:?} isn't in the table"));
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!((cells[1], cells[2]), (mutation.rule(), mutation.what()), "{mutation:?}");
        let seeds: u64 = cells[4].parse().expect("a number of seeds");
        assert!(seeds <= SEEDS_MAX, "{mutation:?} was noticed after {seeds} seeds");
        assert!(!cells[5].contains("**nothing**"), "{mutation:?} was never noticed");
    }
}
