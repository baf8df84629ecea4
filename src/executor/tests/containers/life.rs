//! From create to the end: gates, exit codes, execs, terminals, hooks, what is told when it cannot be.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;

use executor::{Command, Kind};
use serde_json::json;

use crate::Test;
use crate::scratch::{Bundle, end, quiet, until, words};

pub(crate) const TESTS: &[Test] = &[("life::output_and_exit_code", output_and_exit_code)];

fn output_and_exit_code() {
    let outcome = Bundle::new("echo hello; echo $$; exit 7").run().unwrap();
    assert_eq!((outcome.code, outcome.out.as_str()), (7, "hello\n1\n"));
}
