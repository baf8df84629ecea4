//! Containers on the real kernel: made from bundles in a scratch root, looked at from inside with the node's own tools.
//!
//! The executor copies its caller, so the caller has one thread: this is a program without the test harness. It runs in
//! a private mount namespace, as root. Arguments: parts of test names; `--bench` measures instead.

mod bench;
mod files;
mod hanging;
mod life;
mod limits;
mod probe;
mod scratch;
mod security;
mod users;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let tests: Vec<Test> =
        [life::TESTS, files::TESTS, security::TESTS, users::TESTS, limits::TESTS, probe::TESTS].concat();
    if words.iter().any(|w| w == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP containers: needs root");
        return ExitCode::SUCCESS;
    }
    scratch::leave_the_node_alone();
    if words.iter().any(|w| w == "--bench") {
        bench::run();
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = words.iter().filter(|w| !w.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests.iter().filter(|(name, _)| chosen(name)) {
        print!("test {name} ... ");
        let _ = std::io::stdout().flush();
        let ok = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("{}", if ok { "ok" } else { "FAILED" });
        if ok { passed += 1 } else { failed += 1 }
    }
    let _ = sys::cgroup::Cgroup::new("/corten-test").remove();
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    let left_out = tests.len() - passed - failed;
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {left_out} filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
