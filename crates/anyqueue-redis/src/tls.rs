//! TLS with rustls and ring.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyqueue_core::{Error, ErrorKind, Result, quoted};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::{Address, Tls};

/// Turns TCP connections into TLS ones.
pub(crate) struct Connector(TlsConnector);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    pub(crate) fn new(tls: &Tls) -> Result<Self> {
        let broken = |e| Error::config("TLS cannot be set up").because(e);
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_root_certificates(trusted(tls.ca.as_deref())?);
        let config = match &tls.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let read = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable("tls_key", key, e))?;
                builder.with_client_auth_cert(certificates("tls_certificate", certificate)?, read).map_err(broken)?
            }
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    pub(crate) async fn connect(&self, to: &Address, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(to.host.clone())
            .map_err(|e| Error::config(format!("`{}` is no name that a certificate can have", to.host)).because(e))?;
        self.0.connect(name, stream).await.map_err(|e| {
            let text = format!("{to} and we cannot agree on TLS; check `tls_ca`, and that the host's name is in its certificate");
            Error::new(ErrorKind::Unavailable, text).because(e)
        })
    }
}

fn trusted(ca: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = match ca {
        Some(file) => certificates("tls_ca", file)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(found);
    if roots.is_empty() {
        return Err(Error::config("no certificates to trust are found; name a file with them in `tls_ca`"));
    }
    Ok(roots)
}

fn certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    read.map_err(|e| unreadable(option, file, e))
}

fn unreadable(option: &str, file: &Path, e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::config(format!("option `{option}`: {} cannot be read as PEM", quoted(&file.to_string_lossy()))).because(e)
}
