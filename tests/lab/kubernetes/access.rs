//! Who may speak with the API server: its authority, users, and the files that hold both.

use std::net::IpAddr;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::json;

/// Signs certificates of servers that clients of one API server trust.
#[derive(Debug)]
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one, that nobody trusts yet.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "lab");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params.self_signed(&key).context("sign the authority's certificate")?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate as PEM: what clients must trust.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A server's certificate for these names and addresses.
    ///
    /// # Errors
    /// If one of the names is none.
    pub fn issue(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Identity> {
        let mut subjects: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        // rcgen tells addresses from names by their form.
        subjects.extend(addresses.iter().map(ToString::to_string));
        let mut params = CertificateParams::new(subjects).context("names of a certificate")?;
        params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("server"));
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("sign a certificate")?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// The key that service account tokens are signed with: secret, public.
pub(super) fn token_key() -> Result<(String, String)> {
    let key = KeyPair::generate().context("make a key")?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Somebody whom the API server knows by a token of its own, from its start.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

impl User {
    pub(super) fn new(name: &str, groups: &[&str]) -> Self {
        Self { name: name.to_owned(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
    }

    /// Known in advance: the lab is closed to everybody else.
    pub(super) fn token(&self) -> String {
        token_of(&self.name)
    }
}

pub(super) fn token_of(user: &str) -> String {
    format!("token-of-{}", user.replace(':', "-"))
}

/// The text of `--token-auth-file`: token, user, uid, groups.
pub(super) fn token_file(users: &[User]) -> String {
    let lines = users.iter().enumerate().map(|(index, user)| {
        let User { name, groups } = user;
        format!("{},{name},{index},\"{}\"\n", user.token(), groups.join(","))
    });
    lines.collect()
}

/// A kubeconfig that holds all it needs. JSON is YAML, and needs no quoting rules of our own.
pub(super) fn kubeconfig(server: &str, certificate: &str, token: &str) -> String {
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "clusters": [{
            "name": "lab",
            "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(certificate)},
        }],
        "users": [{"name": "lab", "user": {"token": token}}],
    });
    format!("{document:#}\n")
}
