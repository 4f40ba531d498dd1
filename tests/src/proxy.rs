//! A TCP proxy that does to a connection what networks do, and worse.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Seeded numbers that need not be good.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// A number below `bound`, at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

/// How often each fault happened.
#[derive(Debug, Default)]
pub struct Faults {
    /// Chunks that were held back for a while.
    pub delayed: AtomicU64,
    /// Chunks that were left out.
    pub dropped: AtomicU64,
    /// Connections that were reset.
    pub reset: AtomicU64,
    /// Connections that ended in the middle of a chunk.
    pub truncated: AtomicU64,
    /// Chunks with a bit that was flipped.
    pub corrupted: AtomicU64,
}

/// A proxy in front of one address. It lasts as long as the runtime.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    /// Whether it does any harm.
    stormy: AtomicBool,
    faults: Faults,
    dice: Mutex<Dice>,
}

/// Of this many chunks, one meets each fault.
const ONE_IN: u64 = 400;

enum Fault {
    None,
    Delay(Duration),
    Drop,
    Reset,
    Truncate,
    Corrupt,
}

impl Shared {
    fn roll(&self, bound: u64) -> u64 {
        self.dice.lock().unwrap().below(bound)
    }

    fn fault(&self) -> Fault {
        if !self.stormy.load(Ordering::Relaxed) {
            return Fault::None;
        }
        let (fault, counter) = match self.roll(ONE_IN) {
            0 => (Fault::Delay(Duration::from_millis(self.roll(700))), &self.faults.delayed),
            1 => (Fault::Drop, &self.faults.dropped),
            2 => (Fault::Reset, &self.faults.reset),
            3 => (Fault::Truncate, &self.faults.truncated),
            4 => (Fault::Corrupt, &self.faults.corrupted),
            _ => return Fault::None,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        fault
    }
}

impl Proxy {
    /// Listens on a free port of the loopback interface. Must be called within a tokio runtime.
    pub async fn start(upstream: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            upstream,
            stormy: AtomicBool::new(false),
            faults: Faults::default(),
            dice: Mutex::new(Dice::new(seed)),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                // An end of either side is the end of both.
                tokio::spawn(async move { drop(carry(client, &shared).await) });
            }
        });
        Self { address, shared }
    }

    /// Begins or ends to do harm.
    pub fn storm(&self, stormy: bool) {
        self.shared.stormy.store(stormy, Ordering::Relaxed);
    }

    /// What it has done.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }
}

async fn carry(client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(shared.upstream).await?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = copy(from_client, to_server, shared) => ended,
        ended = copy(from_server, to_client, shared) => ended,
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let chunk = &mut buffer[..length];
        match shared.fault() {
            Fault::None => {}
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Drop => continue,
            Fault::Reset => {
                // Closed with something unsent, a socket sends a reset.
                to.as_ref().set_zero_linger()?;
                return Ok(());
            }
            Fault::Truncate => return to.write_all(&chunk[..length / 2]).await,
            Fault::Corrupt => {
                let at = shared.roll(length as u64) as usize;
                chunk[at] ^= 1 << shared.roll(8);
            }
        }
        to.write_all(chunk).await?;
    }
}
