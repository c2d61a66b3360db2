//! Simulates the pool under faults, seed after seed.
//!
//! `cargo run --release --example simulate -- [--seeds N] [--first-seed S] [--threads T] [--trace] [--year]`
//!
//! Ends with 1 at the first violation, whose seed it prints: `--first-seed S
//! --seeds 1 --trace` shows that run event by event. `--year` simulates a year
//! of a pool of four for each seed.

#[path = "../tests/simulator/mod.rs"]
#[allow(dead_code, reason = "the tests plant bugs, this does not")]
mod simulator;

use simulator::plan::{DAY, Plan};
use simulator::{Options, Report, clock_time, run};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

struct Arguments {
    seeds: u64,
    first_seed: u64,
    threads: usize,
    trace: bool,
    year: bool,
    go_on: bool,
}

fn arguments() -> Result<Arguments, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut parsed =
        Arguments { seeds: 1000, first_seed: 0, threads, trace: false, year: false, go_on: false };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut number = || -> Result<u64, String> {
            let value = given.next().ok_or_else(|| format!("{name} needs a number after it"))?;
            value.parse().map_err(|_| format!("{name} needs a whole number, not {value:?}"))
        };
        match name.as_str() {
            "--seeds" => parsed.seeds = number()?,
            "--first-seed" => parsed.first_seed = number()?,
            "--threads" => parsed.threads = number()?.clamp(1, 256) as usize,
            "--trace" => parsed.trace = true,
            "--year" => parsed.year = true,
            "--go-on" => parsed.go_on = true,
            _ => {
                return Err(format!(
                    "unknown argument {name:?}: there are --seeds N, --first-seed S, --threads T, --trace, --year, --go-on"
                ));
            }
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let Arguments { seeds, first_seed, threads, trace, year, go_on } = arguments;
    let end = first_seed.saturating_add(seeds);
    let next = AtomicU64::new(first_seed);
    let done = AtomicU64::new(0);
    let violations = AtomicU64::new(0);
    let total = Mutex::new(Report::default());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..if trace { 1 } else { threads } {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || (violations.load(Ordering::Relaxed) > 0 && !go_on) {
                        return;
                    }
                    let plan = year.then(Plan::year);
                    let (report, violation) = run(Options { seed, plan, bug: None, trace });
                    if let Some(violation) = violation {
                        violations.fetch_add(1, Ordering::Relaxed);
                        println!("{violation}");
                    }
                    let Ok(mut total) = total.lock() else { return };
                    total.add(&report);
                    let count = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if count.is_multiple_of((seeds / 20).max(1)) {
                        let jobs = total.jobs_completed;
                        let seconds = began.elapsed().as_secs_f64();
                        println!("{count} of {seeds} seeds, {jobs} jobs, {seconds:.1} s");
                    }
                }
            });
        }
    });

    let Ok(total) = total.into_inner() else { return ExitCode::FAILURE };
    println!("\nfaults injected:");
    for (name, count) in total.faults_by_kind() {
        println!("{count:>12}  {name}");
    }
    println!(
        "\n{} seeds in {:.1} s: {:.1} simulated years, {} events, {} restarts, {} VMs made, {} jobs completed, {} failed with their VM; whole again after {} at most",
        done.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64(),
        total.simulated as f64 / (365 * DAY) as f64,
        total.events,
        total.restarts,
        total.vms_made,
        total.jobs_completed,
        total.jobs_failed,
        clock_time(total.recovery),
    );
    match violations.load(Ordering::Relaxed) {
        0 => {
            println!("no violation");
            ExitCode::SUCCESS
        }
        count => {
            println!("{count} VIOLATIONS: see above. Replay one with --first-seed SEED --seeds 1 --trace");
            ExitCode::FAILURE
        }
    }
}
