//! TLS certificates for an etcd that the agents of a job run among themselves, made from a secret that all agents have.
//!
//! Nobody hands out certificates and nobody has to wait for them: each agent derives the key of the same CA from the secret
//! and signs a certificate of its own. Whoever has the secret is trusted by all others, and nobody else is.

use std::net::IpAddr;
use std::str::FromStr;

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

/// How the name of each CA begins that is made here. What follows tells the secrets apart, so that a certificate of another
/// one is seen to have another issuer, not a wrong signature.
pub const AUTHORITY: &str = "torchetcd quorum CA";

/// What no one can try out, if it is random.
pub const SHORTEST_SECRET: usize = 16;

/// A change of either makes other keys: agents of both kinds would not trust each other.
const SALT: &[u8] = b"torchetcd quorum";
const KEY_INFO: &[u8] = b"torchetcd quorum CA key, P-256, version 1";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificatesError {
    #[error(
        "The secret of a quorum must have at least {SHORTEST_SECRET} bytes, not {length}. Make one with \
         `openssl rand -hex 32`."
    )]
    TooShort { length: usize },
    #[error(
        "'{0}' cannot be in a certificate. Expected a host name, an IPv4 address, or an IPv6 address without \
         brackets, and no port."
    )]
    Host(String),
    #[error("no certificate can be made: {0}")]
    Library(String),
}

/// All in PEM.
pub struct Certificates {
    /// The CA's. Those of two agents differ in their signature and are worth the same.
    pub ca: String,
    /// For servers and clients at the hosts; without any, for clients only.
    pub cert: String,
    /// Of `cert`, PKCS #8.
    pub key: Zeroizing<String>,
}

pub fn certificates(secret: &[u8], hosts: &[String]) -> Result<Certificates, CertificatesError> {
    if secret.len() < SHORTEST_SECRET {
        return Err(CertificatesError::TooShort { length: secret.len() });
    }
    let mut names = Vec::new();
    for host in hosts {
        let name = name(host).ok_or_else(|| CertificatesError::Host(host.clone()))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let authority_key = Zeroizing::new(authority_key(secret)?);
    let authority = authority(&authority_key);
    let ca = authority.self_signed(&*authority_key).map_err(failed)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let key = Zeroizing::new(key);
    let issuer = Issuer::new(authority, &*authority_key);
    let cert = member(names).signed_by(&*key, &issuer).map_err(failed)?;
    Ok(Certificates { ca: ca.pem(), cert: cert.pem(), key: Zeroizing::new(key.serialize_pem()) })
}

fn name(host: &str) -> Option<SanType> {
    if let Ok(address) = IpAddr::from_str(host) {
        return Some(SanType::IpAddress(address));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !host.chars().all(allowed) {
        return None;
    }
    Ia5String::try_from(host).ok().map(SanType::DnsName)
}

/// The key that all who have the secret derive.
fn authority_key(secret: &[u8]) -> Result<KeyPair, CertificatesError> {
    let derived = Salt::new(HKDF_SHA256, SALT).extract(secret);
    let key = (0..=u8::MAX).find_map(|attempt| candidate(&derived, attempt));
    let key: Pkcs8V1Der = key.ok_or_else(|| failed("none is valid"))?.as_der().map_err(failed)?;
    let key = PrivatePkcs8KeyDer::from(key.as_ref());
    KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).map_err(failed)
}

/// Not every number of 32 bytes is a key of this curve, but almost all are.
fn candidate(derived: &Prk, attempt: u8) -> Option<PrivateKey> {
    let mut number = Zeroizing::new([0; 32]);
    derived.expand(&[KEY_INFO, &[attempt]], HKDF_SHA256).ok()?.fill(&mut *number).ok()?;
    PrivateKey::from_private_key(&ECDH_P256, &*number).ok()
}

fn fingerprint(key: &KeyPair) -> u64 {
    let print = digest(&SHA256, key.public_key_raw());
    print.as_ref().iter().take(8).fold(0, |print, byte| print << 8 | u64::from(*byte))
}

fn authority(key: &KeyPair) -> CertificateParams {
    let mut params = named(&format!("{AUTHORITY} {:016x}", fingerprint(key)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn member(hosts: Vec<SanType>) -> CertificateParams {
    let mut params = named("torchetcd quorum member");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !hosts.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.subject_alt_names = hosts;
    params
}

/// Valid at any time, so that a machine whose clock is wrong takes part: the end of a certificate limits for how long a
/// stolen key is of use, and here whoever has the secret can make others. The secret belongs to one job and ends with it.
fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(1970, 1, 1);
    // RFC 5280, 4.1.2.5: none that is well-defined.
    params.not_after = date_time_ymd(9999, 12, 31);
    params.use_authority_key_identifier_extension = true;
    params
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: impl ToString) -> CertificatesError {
    CertificatesError::Library(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef";

    fn made(secret: &[u8], hosts: &[&str]) -> Result<Certificates, CertificatesError> {
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        certificates(secret, &hosts)
    }

    /// Another key would shut out agents of other versions.
    #[test]
    fn the_key_of_a_secret_stays_the_same() {
        let key = authority_key(SECRET).expect("a key");
        assert_eq!(fingerprint(&key), 0xe238_a039_1a63_7926);
        assert_ne!(
            authority_key(b"0123456789abcdeF").expect("a key").public_key_raw(),
            key.public_key_raw()
        );
    }

    #[test]
    fn each_has_a_key_of_its_own() {
        let [one, other] = [(); 2].map(|()| made(SECRET, &["localhost", "::1"]).expect("made"));
        assert_ne!(*one.key, *other.key);
        assert_ne!(one.cert, other.cert);
    }

    #[test]
    fn a_short_secret_and_what_is_no_host_are_refused() {
        let error = |secret: &[u8], host: &str| made(secret, &[host]).err().map(|e| e.to_string());
        let short = error(b"0123456789abcde", "h").expect("an error");
        assert!(short.contains("at least 16 bytes, not 15"), "{short}");
        assert!(!short.contains("0123"), "{short}");
        for host in ["", "h:2379", "[::1]", "fe80::1%eth0", "http://h", "h\u{e4}"] {
            let text = error(SECRET, host).expect("an error");
            assert!(text.contains(&format!("'{host}' cannot be")), "{text}");
        }
        assert!(made(SECRET, &["h_1.example", "10.0.0.1", "fe80::1", "h_1.example"]).is_ok());
        assert!(made(SECRET, &[]).is_ok());
    }
}
