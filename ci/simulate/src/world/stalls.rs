//! Nobody waits for long because a process computes: each turn of its thread is short, whatever the
//! volume's size and the length of its chain.

use super::*;

/// What one turn may take: a list looks at 4096 pages at most, and a message is at most 32 MiB.
const TURN_US_MAX: u64 = 10 * MS;

impl World {
    /// Pings and leases wait for one turn.
    pub(super) fn check_turns(&mut self) {
        for (at, machine) in self.machines.iter().enumerate() {
            let longest_us = machine.thread.take_longest_turn_us();
            self.tally.longest_turn_us = self.tally.longest_turn_us.max(longest_us);
            assert!(
                longest_us <= TURN_US_MAX,
                "r{at} computes for {longest_us} us without a turn for others"
            );
        }
    }
}
