//! A TCP proxy that misbehaves on demand.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How the proxy treats what it forwards.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    black: bool,
    refuse: bool,
    delay: Duration,
    bytes_per_second: Option<u32>,
    /// Connections of an earlier number are cut.
    cuts: u64,
    /// Connections of an earlier number are black for good.
    swallowed: u64,
}

/// Stands between a client and a server on this machine. Dropping it ends it and all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Listens on a free port and forwards to a server. Call it inside the runtime.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::default());
        let accepting = tokio::spawn(accept(listener, target, seen)).abort_handle();
        Ok(Self { address, weather, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all connections with RST. New ones work.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Goes black, or comes back: nothing is forwarded and nothing is closed, for new connections too.
    pub fn black(&self, on: bool) {
        self.weather.send_modify(|weather| weather.black = on);
    }

    /// Lets all open connections go black for good, as when a machine in between has lost power. New ones work.
    pub fn swallow(&self) {
        self.weather.send_modify(|weather| weather.swallowed += 1);
    }

    /// Cuts new connections at once, or takes them again.
    pub fn refuse(&self, on: bool) {
        self.weather.send_modify(|weather| weather.refuse = on);
    }

    /// Forwards everything later by this much.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Forwards no more than so many bytes per second and direction, or all of them again.
    pub fn throttle(&self, bytes_per_second: Option<u32>) {
        self.weather.send_modify(|weather| weather.bytes_per_second = bytes_per_second);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, seen: watch::Receiver<Weather>) {
    while let Ok((client, _)) = listener.accept().await {
        let seen = seen.clone();
        tokio::spawn(async move {
            // A connection that fails ends; there is nobody to tell.
            drop(connection(client, target, seen).await);
        });
    }
}

async fn connection(client: TcpStream, target: SocketAddr, seen: watch::Receiver<Weather>) -> io::Result<()> {
    let began = seen.borrow().cuts;
    let mut watched = seen.clone();
    if seen.borrow().refuse {
        return client.set_zero_linger();
    }
    let mut server = None;
    let ended = tokio::select! {
        ended = forward(&client, target, &mut server, seen) => ended,
        // Also when the proxy is dropped.
        _ = watched.wait_for(|weather| weather.cuts != began) => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if ended.is_err() {
        client.set_zero_linger()?;
        server.map_or(Ok(()), |server: TcpStream| server.set_zero_linger())?;
    }
    Ok(())
}

async fn forward(
    client: &TcpStream,
    target: SocketAddr,
    server: &mut Option<TcpStream>,
    mut seen: watch::Receiver<Weather>,
) -> io::Result<()> {
    let born = light(&mut seen, u64::MAX).await?.swallowed;
    let server = server.insert(TcpStream::connect(target).await?);
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    tokio::try_join!(pump(client, server, seen.clone(), born), pump(server, client, seen, born))?;
    Ok(())
}

/// Waits while the proxy is black to connections of this number.
async fn light(seen: &mut watch::Receiver<Weather>, born: u64) -> io::Result<Weather> {
    let gone = |_| io::Error::from(io::ErrorKind::ConnectionReset);
    seen.wait_for(|weather| !weather.black && weather.swallowed <= born).await.map(|weather| *weather).map_err(gone)
}

/// Forwards one direction until its sender closes it.
async fn pump(from: &TcpStream, to: &TcpStream, mut seen: watch::Receiver<Weather>, born: u64) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        from.readable().await?;
        let weather = light(&mut seen, born).await?;
        let most = weather.bytes_per_second.map_or(buffer.len(), |rate| (rate as usize / 20).clamp(1, buffer.len()));
        let count = match from.try_read(&mut buffer[..most]) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
        if let Some(rate) = weather.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(count as f64 / f64::from(rate.max(1)))).await;
        }
        tokio::time::sleep(weather.delay).await;
        light(&mut seen, born).await?;
        if count == 0 {
            return rustix::net::shutdown(to, rustix::net::Shutdown::Write).map_err(io::Error::from);
        }
        write_all(to, &buffer[..count]).await?;
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    async fn pair() -> (Proxy, TcpStream) {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(answers(&mut client, Duration::from_secs(5)).await.unwrap());
        (proxy, client)
    }

    /// Whether an echo comes back in time; an error if the connection is broken.
    async fn answers(client: &mut TcpStream, within: Duration) -> io::Result<bool> {
        client.write_all(b"hello").await?;
        let mut back = [0; 5];
        match tokio::time::timeout(within, client.read_exact(&mut back)).await {
            Ok(read) => read.map(|_| back == *b"hello"),
            Err(_) => Ok(false),
        }
    }

    #[tokio::test]
    async fn a_cut_is_a_reset_and_new_connections_work() {
        let (proxy, mut client) = pair().await;
        proxy.cut();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let mut next = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(answers(&mut next, Duration::from_secs(5)).await.unwrap());
    }

    #[tokio::test]
    async fn a_black_hole_answers_nothing_and_closes_nothing() {
        let (proxy, mut client) = pair().await;
        proxy.black(true);
        assert!(!answers(&mut client, Duration::from_millis(100)).await.unwrap());
        let mut late = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(!answers(&mut late, Duration::from_millis(100)).await.unwrap());
        proxy.black(false);
        let mut back = [0; 5];
        client.read_exact(&mut back).await.unwrap();
        late.read_exact(&mut back).await.unwrap();
        proxy.swallow();
        assert!(!answers(&mut client, Duration::from_millis(100)).await.unwrap());
        let mut fresh = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(answers(&mut fresh, Duration::from_secs(5)).await.unwrap());
        assert_eq!(back, *b"hello");
    }

    #[tokio::test]
    async fn delay_and_throttle_slow_it_down() {
        let (proxy, mut client) = pair().await;
        proxy.delay(Duration::from_millis(60));
        let began = Instant::now();
        assert!(answers(&mut client, Duration::from_secs(5)).await.unwrap());
        assert!(began.elapsed() >= Duration::from_millis(120), "both directions are late");
        proxy.delay(Duration::ZERO);
        proxy.throttle(Some(50));
        let began = Instant::now();
        assert!(answers(&mut client, Duration::from_secs(5)).await.unwrap());
        assert!(began.elapsed() >= Duration::from_millis(100), "5 bytes each way at 50 a second took {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_refused_connection_is_reset_and_a_close_is_passed_on() {
        let (proxy, mut client) = pair().await;
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "the end of one side reaches the other and comes back");
        proxy.refuse(true);
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(refused.read_u8().await.is_err());
    }
}
