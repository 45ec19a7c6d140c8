//! An engine and three replicas over real sockets and files, in one process: what a client sees
//! through deaths and returns.

mod harness;
mod rebuild;
mod repair;
mod volume;
