//! Arguments, configuration and logging; builds the parts and runs them.

fn main() {}
