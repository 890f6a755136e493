//! TLS towards a server: the files of the configuration, the handshake, and what a failure means in words.
//!
//! A failure is explained by what the library says, never by its text: which side refuses which certificate, and why. Two
//! mistakes look like a network that fails, TLS spoken to a plain port and the other way round; there the server is asked
//! once more in the other way, and only its answer counts.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::net::NetError;
use crate::config::{Address, Tls, UnfitTls};

/// How long the question may take whether a port speaks the other way.
const OTHER_WAY_LIMIT: Duration = Duration::from_secs(2);

/// Whether connections can be opened with these settings: the files are there, fit to be used, and fit each other.
pub fn check_tls(tls: &Tls) -> Result<(), UnfitTls> {
    client_config(tls).map(drop)
}

/// The handshake.
pub(super) async fn connect(
    address: &Address,
    host: &str,
    stream: TcpStream,
    tls: &Tls,
) -> Result<TlsStream<TcpStream>, NetError> {
    let failed =
        |cause: String, cure: &str| NetError::Tls { address: address.clone(), cause, cure: cure.into() };
    let config = client_config(tls).map_err(|unfit| {
        failed(
            format!("'{}' in 'tls_config': {}", unfit.key, unfit.message),
            &format!("The cure: {}.", unfit.help),
        )
    })?;
    let name = tls.server_name.as_deref().unwrap_or(host);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| failed(format!("'{name}' is not a host name"), "Set 'server_name' in 'tls_config'."))?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        if let Some((cause, cure)) = explain(&error, tls.cert.as_deref()) {
            return failed(cause, &cure);
        }
        // Cut in the middle of it, or not TLS at all, which says nothing about certificates.
        NetError::Lost { address: address.clone(), what: "the TLS handshake".into(), cause: error }
    })
}

/// What the server refuses, and the cure, where that is what an error says. `certificate` is ours, if we have one.
pub(super) fn refusal(error: &io::Error, certificate: Option<&Path>) -> Option<(String, String)> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(of_alert(*alert, certificate)),
        _ => None,
    }
}

/// Why a handshake failed, and the cure; `None` where the other side does not speak TLS, or not to its end.
fn explain(error: &io::Error, certificate: Option<&Path>) -> Option<(String, String)> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(of_alert(*alert, certificate)),
        rustls::Error::InvalidCertificate(problem) => Some(of_certificate(problem)),
        rustls::Error::InvalidMessage(_) => None,
        other => Some((other.to_string(), "Look at the server's log.".into())),
    }
}

/// The server refuses: mostly our certificate. With TLS 1.3 it judges that when the handshake is over for us.
fn of_alert(alert: AlertDescription, certificate: Option<&Path>) -> (String, String) {
    const SIGNED: &str = "Set 'cert' and 'key' in 'tls_config' to a certificate that is signed by an authority of the server's \
        'tls-ca-cert-file', or add its authority there.";
    let ours = certificate.map(|path| path.display());
    let refused = |why: &str| match &ours {
        Some(ours) => format!("the server refuses our certificate '{ours}': {why} ({alert:?})"),
        None => format!("the server refuses us: {why} ({alert:?})"),
    };
    let without = "Set 'cert' and 'key' in 'tls_config' to a certificate that the server trusts, or let it do without \
        ('tls-auth-clients no' of the server).";
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => match &ours {
            None => (format!("the server wants a certificate of ours and got none ({alert:?})"), without.into()),
            Some(_) => (refused("it is of no kind that the server takes"), SIGNED.into()),
        },
        // DecryptError: by its name, but not by its key.
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            (refused("it is not signed by an authority that the server trusts"), SIGNED.into())
        }
        AlertDescription::CertificateExpired => {
            (refused("it has expired"), "Renew it, and start again ('cert' and 'key' in 'tls_config').".into())
        }
        AlertDescription::CertificateRevoked => {
            (refused("it was revoked"), "Set 'cert' and 'key' in 'tls_config' to a valid one.".into())
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => match &ours {
            None => (format!("the server wants a certificate of ours and got none ({alert:?})"), without.into()),
            Some(_) => (refused("its log says why"), SIGNED.into()),
        },
        // With TLS 1.2 that is what is said about a missing certificate, among other things.
        AlertDescription::HandshakeFailure if ours.is_none() => (
            format!("the server ended the handshake ({alert:?})"),
            "Either the server wants a certificate of ours (set 'cert' and 'key' in 'tls_config'), or it has none of the usual \
             ciphers ('tls-ciphers' of the server)."
                .into(),
        ),
        AlertDescription::ProtocolVersion => (
            format!("the server speaks no version of TLS that we do ({alert:?})"),
            "Let the server offer TLS 1.2 or 1.3 ('tls-protocols').".into(),
        ),
        _ => (format!("the server ended the handshake ({alert:?})"), "Look at the server's log.".into()),
    }
}

/// We refuse the certificate of the server. Every reason has ways on of its own.
fn of_certificate(problem: &CertificateError) -> (String, String) {
    const ANY: &str = "accept any certificate with 'tls_insecure = true': then whoever is in between can read and change everything";
    let (cause, cure) = match problem {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "the certificate is for another name",
            format!(
                "Three ways on: set 'server_name' in 'tls_config' to a name of the certificate, give the server a certificate for \
                 the name by which it is reached, or {ANY}."
            ),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "the certificate has expired",
            format!("Two ways on: renew the certificate of the server, or, until that is done, {ANY}."),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            "the certificate is not valid yet",
            format!(
                "Three ways on: set the clock of this host, if it is wrong, wait for that time, or {ANY}."
            ),
        ),
        CertificateError::Revoked => {
            ("the certificate was revoked", format!("Two ways on: give the server another one, or {ANY}."))
        }
        // A bad signature: an authority of the same name with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "the certificate comes from an authority that is not trusted here",
            format!(
                "Three ways on: set 'ca_cert' in 'tls_config' to the file of the authority that has signed it, give the server a \
                 certificate of an authority that is trusted here, or {ANY}."
            ),
        ),
        _ => (
            "the certificate cannot be used",
            format!("Two ways on: give the server another certificate, or {ANY}."),
        ),
    };
    (format!("{cause} ({problem})"), cure)
}

/// An error of a connection that was to be encrypted; where the port answers without TLS, that is said instead.
pub(super) async fn unless_plain(error: NetError, address: &Address) -> NetError {
    match (&error, address) {
        (NetError::Timeout { .. } | NetError::Lost { .. }, Address::Tcp { host, port })
            if answers_plainly(host, *port).await =>
        {
            NetError::Tls {
                address: address.clone(),
                cause: "the server does not speak TLS on this port".into(),
                cure: "Name its TLS port ('tls-port' of the server), or write 'tls = false' on this side: then everything goes over \
                       the network as it is, the password too."
                    .into(),
            }
        }
        _ => error,
    }
}

/// An error of a plain connection before the first answer; where the port speaks TLS, that is said instead.
pub(super) async fn unless_encrypted(error: NetError, address: &Address) -> NetError {
    match (&error, address) {
        (NetError::Lost { .. }, Address::Tcp { host, port }) if answers_with_tls(host, *port).await => {
            wants_tls(address)
        }
        _ => error,
    }
}

/// A plain connection to a TLS port.
pub(super) fn wants_tls(address: &Address) -> NetError {
    NetError::Tls {
        address: address.clone(),
        cause: "this port wants TLS, and the connection is plain".into(),
        cure: "Write 'tls = true' on this side, or name the server's plain port.".into(),
    }
}

/// Whether bytes are a TLS alert, which is what a TLS port answers to plain words.
pub(super) fn is_alert(bytes: &[u8]) -> bool {
    bytes.starts_with(&[21, 3])
}

async fn answers_plainly(host: &str, port: u16) -> bool {
    let asking = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(b"PING\r\n").await?;
        // "+PONG", or why not.
        Ok::<_, io::Error>([b'+', b'-'].contains(&stream.read_u8().await?))
    };
    matches!(timeout(OTHER_WAY_LIMIT, asking).await, Ok(Ok(true)))
}

async fn answers_with_tls(host: &str, port: u16) -> bool {
    let any = Tls { insecure: true, ..Tls::default() };
    let (Ok(config), Ok(name)) = (client_config(&any), ServerName::try_from(host.to_owned())) else {
        return false;
    };
    let asking = async {
        let stream = TcpStream::connect((host, port)).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    match timeout(OTHER_WAY_LIMIT, asking).await {
        Ok(Ok(_)) => true,
        // It refuses us in its own tongue.
        Ok(Err(error)) => explain(&error, None).is_some(),
        Err(_) => false,
    }
}

fn client_config(tls: &Tls) -> Result<rustls::ClientConfig, UnfitTls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit("ca_cert", error.to_string(), "report this"))?;
    let builder = if tls.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
    } else {
        builder.with_root_certificates(authorities(tls)?)
    };
    let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("cert", cert)?;
    let key_file = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        pem::Error::NoItemsFound => unfit(
            "key",
            format!("'{}' holds no private key that can be read", key.display()),
            "name a PEM file with '-----BEGIN PRIVATE KEY-----'; of an encrypted key: openssl pkey -in <file> -out <plain file>",
        ),
        error => unreadable("key", key, error),
    })?;
    builder.with_client_auth_cert(chain, key_file).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => unfit(
            "key",
            format!("the key '{}' does not belong to the certificate '{}'", key.display(), cert.display()),
            "name the key and the certificate that were made together",
        ),
        rustls::Error::InvalidCertificate(error) => {
            unfit("cert", format!("'{}' cannot be used: {error}", cert.display()), CERTIFICATE_WANTED)
        }
        error => unfit(
            "key",
            format!("'{}' cannot be used: {error}", key.display()),
            "name a private key of RSA, ECDSA or Ed25519",
        ),
    })
}

const CERTIFICATE_WANTED: &str = "name a PEM file with '-----BEGIN CERTIFICATE-----'";

/// Whom we trust.
fn authorities(tls: &Tls) -> Result<rustls::RootCertStore, UnfitTls> {
    let mut roots = rustls::RootCertStore::empty();
    let Some(path) = &tls.ca_cert else {
        for certificate in rustls_native_certs::load_native_certs().certs {
            // One odd certificate in the system's store must not stop the others from being used.
            let _ = roots.add(certificate);
        }
        return match roots.is_empty() {
            false => Ok(roots),
            true => Err(unfit(
                "ca_cert",
                "this system has no certificate authorities to trust".into(),
                "set `ca_cert` to the file of the authority, or install those of the system (package ca-certificates)",
            )),
        };
    };
    for certificate in certificates("ca_cert", path)? {
        roots.add(certificate).map_err(|error| {
            unfit("ca_cert", format!("'{}' cannot be used: {error}", path.display()), CERTIFICATE_WANTED)
        })?;
    }
    Ok(roots)
}

/// The certificates of a file; at least one.
fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, UnfitTls> {
    let found = CertificateDer::pem_file_iter(path).and_then(|iter| iter.collect::<Result<Vec<_>, _>>());
    let found = found.map_err(|error| unreadable(key, path, error))?;
    if found.is_empty() {
        return Err(unfit(key, format!("'{}' holds no certificate", path.display()), CERTIFICATE_WANTED));
    }
    Ok(found)
}

fn unreadable(key: &'static str, path: &Path, error: pem::Error) -> UnfitTls {
    let (why, help) = match error {
        pem::Error::Io(error) => (
            error.to_string(),
            "check the path (a relative one begins at the working directory) and who may read the file",
        ),
        error => (error.to_string(), "name a file in PEM form"),
    };
    unfit(key, format!("'{}' cannot be read: {why}", path.display()), help)
}

fn unfit(key: &'static str, message: String, help: &str) -> UnfitTls {
    UnfitTls { key, message, help: help.to_owned() }
}

/// `tls_insecure = true`: signatures are still checked, but any certificate will do.
#[derive(Debug)]
struct AcceptAny(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
