//! A connection in between that lets nothing through any more once a certain command has come.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Forwards to a server until one of its clients sends a part that begins with `stop`, and keeps that one back.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    reached: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    pub(crate) fn before(stop: &'static str, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, reached, open) = (listener.local_addr().unwrap(), Arc::default(), Arc::default());
        let gate = Self { address, reached, open };
        let (reached, open) = (gate.reached.clone(), gate.open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(target) else { continue };
                open.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let (back, reached) = ((server.try_clone().unwrap(), client.try_clone().unwrap()), reached.clone());
                std::thread::spawn(move || {
                    forward(client, server, |part| {
                        let stops = part.starts_with(stop.as_bytes());
                        reached.fetch_or(stops, Ordering::SeqCst);
                        stops
                    })
                });
                std::thread::spawn(move || forward(back.0, back.1, |_| false));
            }
        });
        gate
    }

    /// Whether the command has come.
    pub(crate) fn reached(&self) -> bool {
        self.reached.load(Ordering::SeqCst)
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

/// Forwards until the sender is done or a part must not pass.
fn forward(mut from: TcpStream, mut to: TcpStream, stops: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if stops(&buffer[..count]) {
            return;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
