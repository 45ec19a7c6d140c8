use ankole_model::explore::explore;
use ankole_model::protocol::{Bounds, Protocol};
use ankole_model::rules::{Rule, Rules};
fn main() {
    let b = Bounds { members: 3, writes: 1, reads: true, flushes: false, rebuilds: false, successor: true, restarts: true, power_cuts: false, reformats: false, deltas: false };
    let args: Vec<String> = std::env::args().collect();
    let limit: usize = args[1].parse().unwrap();
    let configs = [
        ("fencing w2", Bounds { writes: 2, ..b }),
        ("power 1w", Bounds { power_cuts: true, flushes: true, reads: false, ..b }),
        ("power read 1w", Bounds { power_cuts: true, flushes: true, ..b }),
        ("rebuild 1w", Bounds { members: 2, rebuilds: true, ..b }),
        ("rebuild power 1w 1 engine", Bounds { members: 2, rebuilds: true, power_cuts: true, flushes: true, successor: false, ..b }),
        ("reformat", Bounds { reformats: true, ..b }),
        ("deltas 1 engine", Bounds { rebuilds: true, deltas: true, writes: 2, flushes: true, reads: false, successor: false, ..b }),
    ];
    let rules: Vec<Rule> = if args.len() > 2 { Rule::ALL.into_iter().filter(|r| format!("{r:?}").contains(&args[2])).collect() } else { Rule::ALL.to_vec() };
    if args.len() > 2 && args[2] == "none" {
        for (name, bounds) in configs {
            if args.len() > 3 && !name.starts_with(&args[3]) { continue; }
            let t = std::time::Instant::now();
            let x = explore(&Protocol { rules: Rules::ALL, bounds }, limit);
            println!("{name}: {} states depth {} complete {} {:?}", x.states, x.depth, x.complete, t.elapsed());
            if let Some(c) = x.counterexample { println!("  {}", c.property); for (s, _) in &c.steps { println!("    {s:?}"); } }
        }
        return;
    }
    for rule in rules {
        for (name, bounds) in configs {
            let x = explore(&Protocol { rules: Rules::ALL.without(rule), bounds }, limit);
            if let Some(c) = x.counterexample {
                println!("{rule:?}: {name}: {} states, {} steps: {}", x.states, c.steps.len(), c.property);
                if args.len() > 2 { for (s, _) in &c.steps { println!("    {s:?}"); } }
            } else { println!("{rule:?}: {name}: nothing in {} states {}", x.states, if x.complete {"COMPLETE"} else {""}); }
        }
    }
}
