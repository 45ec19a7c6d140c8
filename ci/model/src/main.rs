//! Proves the rules, or shows why one is needed.
//!
//! ```text
//! ankole-model prove [--at-length]    explores every state; fails if a property doesn't hold
//! ankole-model prove NAME             only the configuration of that name
//! ankole-model break RULE             the shortest way to disaster without that rule
//! ankole-model table                  that way's length for all rules, as in README.md
//! ```

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use ankole_model::configurations::{Configuration, PROVED, PROVED_AT_LENGTH, where_it_matters};
use ankole_model::explore::{Explored, explore};
use ankole_model::protocol::Protocol;
use ankole_model::rules::{Rule, Rules};

/// Some 60 bytes each.
const STATES_MAX: usize = 120_000_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["prove"] => prove(PROVED),
        ["prove", "--at-length"] => prove(PROVED_AT_LENGTH),
        ["prove", name] => {
            let known = PROVED.iter().chain(PROVED_AT_LENGTH).find(|(known, _)| *known == name);
            known.map_or(ExitCode::from(2), |configuration| prove(&[*configuration]))
        }
        ["break", name] => match Rule::ALL.into_iter().find(|rule| format!("{rule:?}") == name) {
            Some(rule) => show_counterexample(rule),
            None => {
                eprintln!("there is no rule {name}; these are: {:?}", Rule::ALL);
                ExitCode::from(2)
            }
        },
        ["table"] => {
            print_table();
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("ankole-model prove [--at-length | NAME] | break RULE | table");
            ExitCode::from(2)
        }
    }
}

/// With all rules; the first configuration, which knows no power cuts, also with what is written
/// only: that is enough there.
fn searches(configurations: &[Configuration]) -> Vec<(String, Protocol)> {
    let written = Rules::ALL.without(Rule::AcknowledgeNeedsLeases);
    let written =
        configurations.iter().filter(|(name, _)| *name == PROVED[0].0).map(|&(name, bounds)| {
            (
                format!("{name}; rules as written"),
                Protocol { rules: written, bounds, literal_p4: false },
            )
        });
    let all = configurations.iter().map(|&(name, bounds)| {
        (name.to_owned(), Protocol { rules: Rules::ALL, bounds, literal_p4: true })
    });
    written.chain(all).collect()
}

/// As many searches at a time as there are processors.
fn prove(configurations: &[Configuration]) -> ExitCode {
    let searches = Mutex::new(searches(configurations).into_iter());
    let failed = Mutex::new(false);
    println!("{:>12} {:>6} {:>8}", "states", "depth", "seconds");
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((name, protocol)) =
                    searches.lock().expect("nobody panics with it").next()
                {
                    let began = Instant::now();
                    let explored = explore(&protocol, STATES_MAX);
                    let seconds = began.elapsed().as_secs_f64();
                    println!(
                        "{:>12} {:>6} {seconds:>8.1}  {name}",
                        explored.states, explored.depth
                    );
                    if !explored.complete || explored.counterexample.is_some() {
                        print_counterexample(&explored);
                        *failed.lock().expect("nobody panics with it") = true;
                    }
                }
            });
        }
    });
    if failed.into_inner().expect("nobody panics with it") {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn without(rule: Rule) -> Explored<Protocol> {
    let bounds = where_it_matters(rule);
    explore(&Protocol { rules: Rules::ALL.without(rule), bounds, literal_p4: false }, STATES_MAX)
}

fn show_counterexample(rule: Rule) -> ExitCode {
    let explored = without(rule);
    println!("without {rule:?}, {} states:", explored.states);
    print_counterexample(&explored);
    if explored.counterexample.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_counterexample(explored: &Explored<Protocol>) {
    let Some(counterexample) = &explored.counterexample else {
        return println!(
            "nothing goes wrong; {}",
            if explored.complete { "all explored" } else { "NOT all explored" }
        );
    };
    for (number, (step, _)) in counterexample.steps.iter().enumerate() {
        println!("{:>4}. {step}", number + 1);
    }
    println!("      broken: {}", counterexample.property.name());
}

fn print_table() {
    println!("| switched off | rule | steps | states | broken |");
    println!("| --- | --- | ---: | ---: | --- |");
    for rule in Rule::ALL {
        let explored = without(rule);
        let found = explored.counterexample.as_ref();
        let steps = found.map_or("none".to_owned(), |it| it.steps.len().to_string());
        let broken = found.map_or("nothing", |it| it.property.name());
        println!("| `{rule:?}` | {} | {steps} | {} | {broken} |", rule.number(), explored.states);
    }
}
