//! The one binary of Ankole: every role, and the command line.

fn main() {}
