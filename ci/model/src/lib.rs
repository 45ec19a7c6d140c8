#![forbid(unsafe_code)]
pub mod configurations;
pub mod explore;
pub mod history;
pub mod pack;
pub mod protocol;
pub mod rules;
pub mod state;
pub mod values;
