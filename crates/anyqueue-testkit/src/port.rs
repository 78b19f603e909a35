//! Ports for servers, each handed out to one server at a time among all tests of this machine.

use std::io;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

use tokio::net::TcpSocket;

/// Below what systems choose from for outgoing connections: none of those can take a server's port while it restarts.
const PORTS: Range<u16> = 20_000..32_000;

/// The ports that [`free_port`] has handed out.
static KEPT: Mutex<Vec<Port>> = Mutex::new(Vec::new());

/// A port that no other test's server gets until this is dropped, whether anybody listens on it or not.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    /// Its name is there once on a machine and in no folder; the system takes it back when this process ends, in whatever way.
    _mark: UnixListener,
}

impl Port {
    pub(crate) fn take() -> io::Result<Self> {
        Self::among(PORTS)
    }

    fn among(ports: Range<u16>) -> io::Result<Self> {
        let first = fastrand::u16(ports.clone());
        for number in (first..ports.end).chain(ports.start..first) {
            let name = format!("anyqueue-port-{number}");
            let mark = match UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?) {
                Ok(mark) => mark,
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => continue,
                Err(e) => return Err(io::Error::new(e.kind(), format!("the abstract socket `{name}` cannot be had: {e}"))),
            };
            // A program that knows nothing of these marks may listen there.
            if is_free(number)? {
                return Ok(Self { number, _mark: mark });
            }
        }
        let text = format!("none of the ports {} to {} is free", ports.start, ports.end - 1);
        Err(io::Error::new(io::ErrorKind::AddrInUse, text))
    }
}

/// Whether nobody listens there. It never listens itself: a program that another test is starting at this moment keeps all that
/// is open here for a moment longer, and would pass for the server that is about to start.
fn is_free(number: u16) -> io::Result<bool> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    Ok(socket.bind((Ipv4Addr::LOCALHOST, number).into()).is_ok())
}

/// A port on which nobody listens, and that is handed out to nobody else as long as this process lives.
///
/// # Errors
/// What the system says, or that there is none left.
pub fn free_port() -> io::Result<u16> {
    let port = Port::take()?;
    let number = port.number;
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(port);
    Ok(number)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// Two ports of one test of one process, outside those that servers get.
    fn two(test: u16) -> Range<u16> {
        let first = 32_000 + (std::process::id() % 90) as u16 * 8 + test * 2;
        first..first + 2
    }

    #[test]
    fn a_port_is_handed_out_once_until_it_is_given_back() {
        let ports = two(0);
        let (first, second) = (Port::among(ports.clone()).unwrap(), Port::among(ports.clone()).unwrap());
        assert_ne!(first.number, second.number);
        let error = Port::among(ports.clone()).unwrap_err();
        assert!(error.to_string().contains(&format!("{} to {}", ports.start, ports.start + 1)), "{error}");
        let number = first.number;
        drop(first);
        assert_eq!(eventually(|| Port::among(ports.clone()).ok()).number, number);
    }

    /// A program that another test is starting at this moment has a copy of everything that is open, for a moment.
    fn eventually<T>(have: impl Fn() -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match have() {
                Some(one) => return one,
                None => assert!(Instant::now() < until, "not given back within 20 s"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_left_out() {
        let ports = two(1);
        let _other = TcpListener::bind((Ipv4Addr::LOCALHOST, ports.start)).unwrap();
        assert_eq!(Port::among(ports.clone()).unwrap().number, ports.start + 1);
    }

    #[test]
    fn a_port_that_was_looked_at_takes_no_connection_while_programs_are_started() {
        let (number, stop) = (two(3).start, AtomicBool::new(false));
        let connected = std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::process::Command::new("true").output().unwrap();
                    }
                });
            }
            let looks = (0..2000).filter(|_| is_free(number).unwrap());
            let connected = looks.filter(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, number)).is_ok()).count();
            stop.store(true, Ordering::Relaxed);
            connected
        });
        assert_eq!(connected, 0);
    }

    /// Set in the other process of the test below: the port that it tries to get.
    const WANTED: &str = "ANYQUEUE_TEST_PORT";

    #[test]
    fn another_process_sees_that_a_port_is_taken() {
        if let Some(number) = std::env::var(WANTED).ok().and_then(|number| number.parse().ok()) {
            let port = Port::among(number..number + 1).map(|port| port.number);
            return assert_eq!(port.ok(), Some(number));
        }
        let port = Port::among(two(2)).unwrap();
        let number = port.number.to_string();
        let gets_it = || {
            let mut other = std::process::Command::new(std::env::current_exe().unwrap());
            other.args(["--exact", "port::tests::another_process_sees_that_a_port_is_taken"]).env(WANTED, &number);
            other.output().unwrap().status.success()
        };
        assert!(!gets_it());
        drop(port);
        eventually(|| gets_it().then_some(()));
    }
}
