//! Certificates for one server, made anew for each: an authority, a server certificate for localhost and 127.0.0.1,
//! and a client certificate, as PEM files.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

#[derive(Debug, Clone)]
pub struct Certificates {
    pub ca: PathBuf,
    pub server: PathBuf,
    pub server_key: PathBuf,
    pub client: PathBuf,
    pub client_key: PathBuf,
}

impl Certificates {
    pub fn make(folder: &Path) -> Certificates {
        Certificates::with(folder, &["localhost", "127.0.0.1"], false)
    }

    /// The server's certificate is for these names, and perhaps over since 2001.
    pub fn with(folder: &Path, names: &[&str], expired: bool) -> Certificates {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "shakedeck test authority");
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let file = |name: &str, pem: String| {
            let path = folder.join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let signed = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            if expired {
                params.not_before = rcgen::date_time_ymd(2000, 1, 1);
                params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            }
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &issuer).unwrap();
            (
                file(&format!("{name}.crt"), certificate.pem()),
                file(&format!("{name}.key"), key.serialize_pem()),
            )
        };
        let (server, server_key) = signed("server");
        let (client, client_key) = signed("client");
        Certificates { ca: file("ca.crt", ca.pem()), server, server_key, client, client_key }
    }
}

/// A certificate that nobody has signed but itself, and its key.
pub fn self_signed(folder: &Path) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["nobody".to_owned()]).unwrap();
    let (cert, key) = (folder.join("own.crt"), folder.join("own.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (cert, key)
}
