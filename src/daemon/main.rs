//! `corten`: the node daemon and its admin commands.
//!
//! `main` is config → build → serve → drain. Every other crate gets values, never flags, files or the
//! environment.
//!
//! | module | what it is |
//! |---|---|
//! | `config`, `config_keys`, `config_values`, `config_raw`, `config_node`, `config_print` | the configuration: table of settings, files, checked values, what this node says to them, print-outs |
//! | `serve` | builds store, network and engine and serves CRI until a signal |
//! | `instance` | the locks that keep a second daemon off the same directories; the socket |
//! | `notify` | tells systemd that the daemon is ready |
//! | `programs` | where corten-runtime and corten-bridge are |
//! | `check`, `check_features` | says whether the node has what is needed |
//! | `admin` | commands that ask the running daemon over CRI |
//! | `cni` | the conflist that `corten` writes |

#![forbid(unsafe_code)]

mod admin;
mod check;
mod check_features;
mod cni;
mod config;
mod config_keys;
mod config_node;
mod config_print;
mod config_raw;
mod config_values;
mod instance;
mod notify;
mod programs;
mod serve;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Loaded, Sources};

/// Kubernetes container runtime.
#[derive(Parser)]
#[command(name = "corten", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Options {
    /// Configuration file [default: /etc/corten/config.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of drop-in files, read by name after the file [default: the file's path with .d for .toml]
    #[arg(long, global = true, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Where CRI is served (server.socket)
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<String>,
    /// Images, records, writable layers (state_dir)
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<String>,
    /// Socket, pid file, monitors (run_dir)
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<String>,
    /// Any setting by its name, as in --set log.format=json
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve CRI until SIGTERM or SIGINT; pods go on
    Serve,
    /// Ask the running daemon for its version, conditions and counts
    Status,
    /// Print the effective configuration with the origin of each value
    Config {
        /// Print the example file instead: every key with its meaning and default
        #[arg(long)]
        default: bool,
    },
    /// Say whether this node has what is needed
    Check,
    /// Images of the running daemon
    #[command(subcommand)]
    Image(ImageCommand),
    /// The pod network
    #[command(subcommand)]
    Network(NetworkCommand),
}

#[derive(Subcommand)]
enum ImageCommand {
    /// List images
    List,
    /// Pull an image
    Pull {
        /// As in docker.io/library/busybox:1.36
        reference: String,
    },
    /// Remove an image with all its tags
    Remove {
        /// Reference, id or unique prefix of an id
        name: String,
    },
}

#[derive(Subcommand)]
enum NetworkCommand {
    /// Write a CNI configuration for our own bridge, unless the directory has one
    Init {
        /// Print it instead
        #[arg(long)]
        print: bool,
    },
}

impl Options {
    fn sources(&self) -> Sources {
        let flag = |(key, value): &(String, String)| (format!("--set {key}"), key.clone(), value.clone());
        let mut flags: Vec<_> = self.set.iter().map(flag).collect();
        let named = [
            ("--socket", "server.socket", &self.socket),
            ("--root", "state_dir", &self.root),
            ("--run-dir", "run_dir", &self.run_dir),
        ];
        for (flag, key, value) in named {
            flags.extend(value.as_ref().map(|v| (flag.to_owned(), key.to_owned(), v.clone())));
        }
        Sources { file: self.config.clone(), directory: self.config_dir.clone(), flags }
    }
}

fn key_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is expected")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The example file must be had even where the configuration is broken.
    if let Command::Config { default: true } = cli.command {
        return print(&config_print::example());
    }
    let sources = cli.options.sources();
    let loaded = match cli.command {
        // they ask a daemon that runs already
        Command::Status | Command::Image(_) => config::load(&sources),
        Command::Serve | Command::Config { .. } | Command::Check | Command::Network(_) => {
            config::load_for_node(&sources)
        }
    };
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(2);
        }
    };
    match run(cli.command, &loaded) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("corten: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, loaded: &Loaded) -> anyhow::Result<ExitCode> {
    let config = loaded.config();
    match command {
        Command::Serve => serve::run(loaded).map(|()| ExitCode::SUCCESS),
        Command::Config { .. } => Ok(print(&config_print::effective(loaded))),
        Command::Check => {
            let (report, usable) = check::report(&config);
            let printed = print(&report);
            Ok(if usable { printed } else { ExitCode::FAILURE })
        }
        Command::Status => Ok(print(&admin::status(&config)?)),
        Command::Image(ImageCommand::List) => Ok(print(&admin::list_images(&config)?)),
        Command::Image(ImageCommand::Pull { reference }) => {
            Ok(print(&admin::pull_image(&config, reference)?))
        }
        Command::Image(ImageCommand::Remove { name }) => {
            admin::remove_image(&config, name).map(|()| ExitCode::SUCCESS)
        }
        Command::Network(NetworkCommand::Init { print: true }) => Ok(print(&cni::conflist(&config))),
        Command::Network(NetworkCommand::Init { print: false }) => Ok(print(&cni::init(&config)?)),
    }
}

/// A reader that has gone is no failure of ours; any other error is.
fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("corten: write to stdout: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
