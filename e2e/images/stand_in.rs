//! What the stand-in images run: one static program that does what tests expect of nginx, httpd and others.
//!
//! The name that it is called by decides:
//! * `nginx [-p PORT]`: comm `nginx`, a command line with `master process`, /var/run/nginx.pid, HTTP 200 on port 80;
//! * `httpd [-p PORT]`: says so in its log, HTTP 200 on port 80;
//! * `hello [-p PORT]`: prints a numbered line a second, HTTP 200 on port 80;
//! * `nonewprivs`: prints its effective user id (the image has it set-uid root);
//! * `pause`: waits.
//!
//! All but `nonewprivs` end with code 0 at SIGTERM, SIGINT and SIGQUIT, also as PID 1, where a signal without a handler is
//! dropped by the kernel: the main thread takes them, the others have them blocked.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

const MASTER: &str = "nginx: master process nginx -g daemon off;";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let called = arguments.first().map(String::as_str).unwrap_or_default();
    if called == MASTER {
        std::fs::write("/proc/self/comm", "nginx")?;
        std::fs::create_dir_all("/var/run")?;
        std::fs::write("/var/run/nginx.pid", format!("{}\n", std::process::id()))?;
        return serve(port(&arguments)?, "nginx");
    }
    match Path::new(called).file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        "nginx" => {
            // the command line that real nginx gives itself
            let port = port(&arguments)?.to_string();
            Err(Command::new("/proc/self/exe").arg0(MASTER).args(["-p", &port]).exec().into())
        }
        "httpd" => {
            println!(
                "[mpm_event:notice] [pid {}] httpd: stand-in configured, resuming normal operations",
                std::process::id()
            );
            serve(port(&arguments)?, "httpd")
        }
        "hello" => {
            std::thread::spawn(|| {
                for line in 1.. {
                    println!("hello {line}");
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
            serve(port(&arguments)?, "hello")
        }
        "nonewprivs" => {
            println!("Effective uid: {}", nix::unistd::geteuid());
            Ok(())
        }
        "pause" => wait(),
        other => Err(format!("nothing to stand in for by the name of {other:?}").into()),
    }
}

/// The number after `-p`, else 80.
fn port(arguments: &[String]) -> Result<u16, Box<dyn Error>> {
    let given = arguments.iter().position(|word| word == "-p").and_then(|at| arguments.get(at + 1));
    Ok(given.map_or(Ok(80), |text| text.parse())?)
}

/// Answer HTTP on all addresses until a signal ends the process.
fn serve(port: u16, name: &'static str) -> Result<(), Box<dyn Error>> {
    block()?;
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream, name));
        }
    });
    wait()
}

fn answer(mut stream: TcpStream, name: &str) {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") && request.len() < 65536 {
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    let body = format!("{name}: it works\n");
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: {name}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).ok();
}

fn ends() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT].into_iter().collect()
}

fn block() -> nix::Result<()> {
    ends().thread_block()
}

fn wait() -> Result<(), Box<dyn Error>> {
    block()?;
    ends().wait()?;
    Ok(())
}
