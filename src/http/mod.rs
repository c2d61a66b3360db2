//! The HTTP server: the connections ([`gate`]).

pub mod gate;
