//! Ports for servers, each handed out to one server at a time among all tests of this machine.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Below what systems choose from for outgoing connections: none of those can take a server's port while it restarts.
const PORTS: Range<u16> = 20_000..32_000;

/// The ports that [`free_port`] has handed out.
static KEPT: Mutex<Vec<Port>> = Mutex::new(Vec::new());

/// A port that no other test's server gets until this is dropped, whether anybody listens on it or not.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    /// Other processes see its lock; the system takes it off when this process ends, in whatever way.
    lock: File,
}

impl Port {
    pub(crate) fn take() -> io::Result<Self> {
        Self::among(PORTS)
    }

    fn among(ports: Range<u16>) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("anyqueue-ports-{}", rustix::process::getuid().as_raw()));
        fs::create_dir_all(&folder)?;
        let first = fastrand::u16(ports.clone());
        for number in (first..ports.end).chain(ports.start..first) {
            let lock = File::create(folder.join(number.to_string()))?;
            match lock.try_lock() {
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => return Err(e),
                // A program that knows nothing of these locks may listen there.
                Ok(()) if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_err() => continue,
                Ok(()) => return Ok(Self { number, lock }),
            }
        }
        let text = format!("none of the ports {} to {} is free", ports.start, ports.end - 1);
        Err(io::Error::new(io::ErrorKind::AddrInUse, text))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // A program that is being started at this moment still has a copy of the file.
        drop(self.lock.unlock());
    }
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
    use super::*;

    /// Two ports of one test of one process, outside those that servers get.
    fn two(test: u16) -> Range<u16> {
        let first = 32_000 + (std::process::id() % 100) as u16 * 6 + test * 2;
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
        assert_eq!(Port::among(ports).unwrap().number, number);
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_left_out() {
        let ports = two(1);
        let _other = TcpListener::bind((Ipv4Addr::LOCALHOST, ports.start)).unwrap();
        assert_eq!(Port::among(ports.clone()).unwrap().number, ports.start + 1);
    }

    #[test]
    fn another_process_sees_that_a_port_is_taken() {
        let port = Port::among(two(2)).unwrap();
        let folder = format!("anyqueue-ports-{}", rustix::process::getuid().as_raw());
        let path = std::env::temp_dir().join(folder).join(port.number.to_string());
        let locked =
            || std::process::Command::new("flock").args(["--nonblock".as_ref(), path.as_os_str(), "true".as_ref()]).status();
        assert!(!locked().expect("util-linux is installed").success());
        drop(port);
        assert!(locked().unwrap().success());
    }
}
