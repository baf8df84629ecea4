//! A backend that runs real processes, and a SPDY client that does as it is told, also what it should not.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use streaming::{
    Attach, Backend, BoxFuture, Duplex, End, Exec, Forward, Refusal, RefusalKind, Server, Session, Settings,
    Size,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

/// Nothing takes so long, also on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Runs commands on this machine. The container "gone" is not there.
#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) sizes: Arc<Mutex<Vec<Size>>>,
    /// Sent to end an attach.
    pub(crate) ends: Mutex<Option<tokio::sync::oneshot::Receiver<End>>>,
    /// Why all pods have gone.
    pub(crate) gone: tokio::sync::watch::Sender<Option<String>>,
}

impl Machine {
    fn start(&self, call: Exec) -> Result<Session, Refusal> {
        if call.container == "gone" {
            return Err(Refusal::new(RefusalKind::NotFound, "container gone is not running"));
        }
        let stdio = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
        let mut child = Command::new(&call.command[0])
            .args(&call.command[1..])
            .stdin(stdio(call.stdin))
            .stdout(stdio(call.stdout))
            .stderr(stdio(call.stderr))
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Refusal::new(RefusalKind::Invalid, format!("{}: {e}", call.command[0])))?;
        let sizes = self.sizes.clone();
        let resize = move |size| {
            sizes.lock().expect("sizes").push(size);
            Ok(())
        };
        Ok(Session {
            stdin: child.stdin.take().map(|stdin| Box::new(stdin) as _),
            stdout: child.stdout.take().map(|stdout| Box::new(stdout) as _),
            stderr: child.stderr.take().map(|stderr| Box::new(stderr) as _),
            resize: call.tty.then(|| Box::new(resize) as _),
            end: Box::pin(async move {
                match child.wait().await {
                    Ok(status) => End::Exited(status.code().unwrap_or(137)),
                    Err(error) => End::Failed(error.to_string()),
                }
            }),
        })
    }
}

impl Backend for Machine {
    fn exec(&self, call: Exec) -> BoxFuture<'_, Result<Session, Refusal>> {
        Box::pin(async { self.start(call) })
    }

    fn attach(&self, call: Attach) -> BoxFuture<'_, Result<Session, Refusal>> {
        let Attach { container, tty, stdin, stdout, stderr } = call;
        let command = ["cat".to_owned()].to_vec();
        let mut session = self.start(Exec { container, command, tty, stdin, stdout, stderr });
        if let (Ok(session), Some(end)) = (&mut session, self.ends.lock().expect("ends").take()) {
            let cat = std::mem::replace(&mut session.end, Box::pin(std::future::pending()));
            session.end = Box::pin(async move {
                let told = end.await.unwrap_or(End::Detached);
                drop(cat);
                told
            });
        }
        Box::pin(async { session })
    }

    fn forward<'a>(&'a self, _: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>, Refusal>> {
        Box::pin(async move {
            match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => Ok(Box::new(stream) as _),
                Err(error) => Err(Refusal::new(RefusalKind::NotFound, error.to_string())),
            }
        })
    }

    fn gone<'a>(&'a self, _: &'a str) -> BoxFuture<'a, String> {
        let mut gone = self.gone.subscribe();
        Box::pin(async move {
            let reason = gone.wait_for(Option::is_some).await.expect("the machine stays");
            reason.clone().unwrap_or_default()
        })
    }
}

/// A server on loopback; it runs as long as the runtime of the test.
pub(crate) async fn server(settings: Settings) -> (Server, Arc<Machine>) {
    let machine = Arc::new(Machine::default());
    let server = Server::bind(settings, machine.clone()).await.expect("listens");
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(std::future::pending()).await });
    (server, machine)
}

/// `sh -c script`, with all streams but a terminal.
pub(crate) fn sh(script: &str) -> Exec {
    Exec {
        container: "c".to_owned(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

pub(crate) fn forward() -> Forward {
    Forward { pod: "p".to_owned(), ports: Vec::new() }
}

/// Opens a pair: error, data.
pub(crate) async fn pair(client: &mut Client, request: &str, port: u16) -> (u32, u32) {
    let port = port.to_string();
    let error = client.open(&[("streamtype", "error"), ("port", &port), ("requestid", request)]).await;
    let data = client.open(&[("streamtype", "data"), ("port", &port), ("requestid", request)]).await;
    (error, data)
}

/// A listener whose connections take little before somebody reads; and its port.
pub(crate) fn stuck_listener() -> (TcpListener, u16) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("binds");
    let listener = socket.listen(16).expect("listens");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

/// A WebSocket on which `protocol` was agreed.
pub(crate) async fn websocket(url: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(parts(url).0).await.expect("connects");
    let mut request = url.replacen("http", "ws", 1).into_client_request().expect("a request");
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().expect("a name"));
    }
    let (stream, answer) = tokio_tungstenite::client_async(request, stream).await.expect("upgrades");
    let chosen = answer.headers().get("sec-websocket-protocol").map(|name| name.to_str().expect("text"));
    assert_eq!(chosen.unwrap_or_default(), protocol);
    stream
}

/// The address and the path of a URL.
pub(crate) fn parts(url: &str) -> (String, String) {
    let rest = url.split_once("://").expect("a URL").1;
    let (address, path) = rest.split_once('/').expect("a path");
    (address.to_owned(), format!("/{path}"))
}

/// Sends bytes and returns what comes until the end of the headers, as text.
pub(crate) async fn head(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        match timeout(DEADLINE, stream.read_u8()).await.expect("an answer in time") {
            Ok(byte) => answer.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(answer).expect("text")
}

/// The request that upgrades to SPDY.
pub(crate) fn upgrade(path: &str, protocols: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocols}\r\nContent-Length: 0\r\n\r\n"
    )
}

/// A client; what has come is kept by stream.
pub(crate) struct Client {
    read: Box<dyn AsyncRead + Send + Unpin>,
    write: Box<dyn AsyncWrite + Send + Unpin>,
    deflate: Compress,
    inflate: Decompress,
    buffer: Vec<u8>,
    next: u32,
    pub(crate) accepted: BTreeSet<u32>,
    pub(crate) data: BTreeMap<u32, Vec<u8>>,
    pub(crate) ended: BTreeSet<u32>,
    /// With the status.
    pub(crate) reset: BTreeMap<u32, u32>,
    pub(crate) pings: Vec<u32>,
    /// By stream, the sum.
    pub(crate) windows: BTreeMap<u32, u64>,
    pub(crate) settings: Vec<(u32, u32)>,
    /// The status of GOAWAY.
    pub(crate) away: Option<u32>,
    pub(crate) closed: bool,
}

impl Client {
    pub(crate) async fn connect(url: &str, protocols: &str) -> Client {
        let (address, path) = parts(url);
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let answer = head(&mut stream, &upgrade(&path, protocols)).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("\r\nconnection: upgrade\r\n"), "{answer}");
        Client::over(stream)
    }

    /// On a connection that speaks SPDY already.
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Client {
        let (read, write) = tokio::io::split(stream);
        Client {
            read: Box::new(read),
            write: Box::new(write),
            deflate: Compress::new(Compression::fast(), true),
            inflate: Decompress::new(true),
            buffer: Vec::new(),
            next: 1,
            accepted: BTreeSet::new(),
            data: BTreeMap::new(),
            ended: BTreeSet::new(),
            reset: BTreeMap::new(),
            pings: Vec::new(),
            windows: BTreeMap::new(),
            settings: Vec::new(),
            away: None,
            closed: false,
        }
    }

    /// With the streams of [`sh`]: error, stdin, stdout, stderr are 1, 3, 5, 7.
    pub(crate) async fn exec(url: &str, protocols: &str) -> Client {
        let mut client = Client::connect(url, protocols).await;
        for kind in ["error", "stdin", "stdout", "stderr"] {
            client.open(&[("streamtype", kind)]).await;
        }
        client
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        // a server that has closed is seen when reading
        let _ = self.write.write_all(bytes).await;
    }

    pub(crate) async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&(payload.len() as u32 | u32::from(flags) << 24).to_be_bytes());
        frame.extend_from_slice(payload);
        self.raw(&frame).await;
    }

    pub(crate) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 1000);
        self.deflate.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("deflates");
        block
    }

    pub(crate) async fn open_as(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.extend_from_slice(&self.block(headers));
        self.control(1, 0, &payload).await;
    }

    /// Opens the next stream.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        self.open_as(id, headers).await;
        id
    }

    pub(crate) async fn send(&mut self, id: u32, data: &[u8], fin: bool) {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend_from_slice(&(data.len() as u32 | if fin { 1 << 24 } else { 0 }).to_be_bytes());
        frame.extend_from_slice(data);
        self.raw(&frame).await;
    }

    pub(crate) async fn reset(&mut self, id: u32) {
        self.control(3, 0, &[id.to_be_bytes(), 5_u32.to_be_bytes()].concat()).await;
    }

    /// SETTINGS: streams to this client begin with 64 KiB. From then on it is one that keeps windows.
    pub(crate) async fn keep_windows(&mut self) {
        self.control(4, 0, &[1_u32.to_be_bytes(), 7_u32.to_be_bytes(), 0x1_0000_u32.to_be_bytes()].concat())
            .await;
    }

    pub(crate) async fn ping(&mut self, id: u32) {
        self.control(6, 0, &id.to_be_bytes()).await;
    }

    pub(crate) async fn window(&mut self, id: u32, delta: u32) {
        self.control(9, 0, &[id.to_be_bytes(), delta.to_be_bytes()].concat()).await;
    }

    /// Half closes the connection.
    pub(crate) async fn end_writing(&mut self) {
        let _ = self.write.shutdown().await;
    }

    /// Reads until `done`, or the end of the connection.
    pub(crate) async fn until(&mut self, done: impl Fn(&Client) -> bool) {
        while !self.closed && !done(self) {
            self.frame().await;
        }
    }

    /// Reads to the end of the connection.
    pub(crate) async fn until_the_end(&mut self) {
        self.until(|_| false).await;
    }

    /// Whatever has arrived within a moment.
    pub(crate) async fn for_a_moment(&mut self) {
        while !self.closed
            && timeout(Duration::from_millis(300), self.fill(self.buffer.len() + 1)).await.is_ok()
        {
            self.frame().await;
        }
    }

    pub(crate) fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.data.get(&id).map_or(&[], |data| data)).into_owned()
    }

    async fn fill(&mut self, length: usize) {
        while !self.closed && self.buffer.len() < length {
            match self.read.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                _ => self.closed = true,
            }
        }
    }

    async fn frame(&mut self) {
        timeout(DEADLINE, self.fill(8)).await.expect("a frame in time");
        if self.closed {
            return;
        }
        let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"));
        let (first, second) = (word(&self.buffer, 0), word(&self.buffer, 4));
        let (flags, length) = (second >> 24, (second & 0xff_ffff) as usize);
        timeout(DEADLINE, self.fill(8 + length)).await.expect("the rest in time");
        if self.closed {
            return;
        }
        let rest = self.buffer.split_off(8 + length);
        let payload = std::mem::replace(&mut self.buffer, rest).split_off(8);
        if first >> 31 == 0 {
            self.data.entry(first).or_default().extend_from_slice(&payload);
            if flags & 1 != 0 {
                self.ended.insert(first);
            }
            return;
        }
        assert_eq!(first >> 16, 0x8003, "version 3");
        match first & 0xffff {
            2 => {
                let mut plain = Vec::with_capacity(100);
                self.inflate
                    .decompress_vec(&payload[4..], &mut plain, FlushDecompress::Sync)
                    .expect("inflates");
                assert_eq!(plain, [0; 4], "no headers");
                assert!(self.accepted.insert(word(&payload, 0)), "accepted once");
            }
            3 => drop(self.reset.insert(word(&payload, 0), word(&payload, 4))),
            4 => self.settings.extend(payload[4..].chunks(8).map(|entry| (word(entry, 0), word(entry, 4)))),
            6 => self.pings.push(word(&payload, 0)),
            7 => self.away = Some(word(&payload, 4)),
            9 => *self.windows.entry(word(&payload, 0)).or_default() += u64::from(word(&payload, 4)),
            other => panic!("a frame of type {other}"),
        }
    }
}
