//! Fuzz targets as plain functions: bytes in, panic if a promise is broken.
//!
//! A target is a function here and a test in `tests/`, where bolero gives it random bytes and the
//! files of its corpus. So all targets run as ordinary tests on stable Rust, and the same ones
//! under a coverage-guided engine; see the README.

pub mod nbd;
pub mod share;
pub mod wire;
