//! Helpers shared by the integration tests.

#![allow(dead_code, reason = "each test crate uses a part")]

pub mod standin;
