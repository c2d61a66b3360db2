//! What several test files share.

#![allow(dead_code, reason = "each test file is a crate of its own and uses only some of this")]

pub mod fake_github;
