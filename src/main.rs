//! The `lb` binary: parses the command line, runs it, prints the error.

use std::process::ExitCode;

use clap::Parser;
use lb::cli::{Cli, Usage};

fn main() -> ExitCode {
    let Err(error) = Cli::parse().run() else { return ExitCode::SUCCESS };
    eprintln!("lb: {error}");
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}
