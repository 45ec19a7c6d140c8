//! The simulated disk of the tests.
