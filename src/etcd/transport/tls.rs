//! TLS towards etcd: whom we trust and what we show.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use crate::certificates::AUTHORITY;
use crate::etcd::config::TlsFiles;
use crate::etcd::error::EtcdError;

/// What etcd's gRPC server speaks above TLS.
pub const HTTP2: &[u8] = b"h2";

/// Reads the files again for each connection, so that a certificate replaced on disk is used. It blocks: a
/// file may be on a file system that hangs.
pub fn client_config(files: &TlsFiles) -> Result<ClientConfig, EtcdError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let trusted = match &files.ca_cert {
        Some(path) => certificates(path, "CA certificate")?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(files, &error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trust::new(files, trusted, provider)?));
    let mut config = match (&files.cert, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), key) => {
            let chain = certificates(cert, "client certificate")?;
            // As python-etcd takes it: one file may hold both the certificate and its key.
            let key = private_key(key.as_ref().unwrap_or(cert))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(files, &error))?
        }
        (None, Some(_)) => {
            return Err(EtcdError::Configuration(
                "A client key was given without the client certificate it belongs to.".into(),
            ));
        }
    };
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

fn unusable(files: &TlsFiles, why: &dyn fmt::Display) -> EtcdError {
    let ca = files.ca_cert.as_ref().map(|path| format!("CA '{}'", path.display()));
    let identity = files.identity().map(|files| format!("client certificate {files}"));
    let named = ca.into_iter().chain(identity).collect::<Vec<_>>().join(", ");
    let named = if named.is_empty() { named } else { format!(" ({named})") };
    let why = why.to_string();
    let why = why.trim_end_matches('.');
    EtcdError::Configuration(format!("The TLS settings for etcd cannot be used{named}: {why}."))
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, EtcdError> {
    let found =
        CertificateDer::pem_slice_iter(&read(path, what)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable_file(path, what, &format!("is not valid PEM: {error}")))?;
    // A CA file without one would only show as a server that is not trusted.
    if found.is_empty() {
        return Err(no_block(path, what, "BEGIN CERTIFICATE-----"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, EtcdError> {
    const WHAT: &str = "client key";
    const BLOCK: &str = "PRIVATE KEY-----";
    let pem = read(path, WHAT)?;
    let text = String::from_utf8_lossy(&pem);
    // The parser passes over blocks that it does not know.
    if !text.contains(BLOCK) {
        return Err(no_block(path, WHAT, BLOCK));
    }
    if text.contains("ENCRYPTED") {
        let why = "is encrypted, and there is nobody to ask for its password";
        return Err(unusable_file(path, WHAT, &why));
    }
    // The error may quote the key.
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| unusable_file(path, WHAT, &"holds no private key that can be read"))
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path)
        .map_err(|error| unusable_file(path, what, &format!("cannot be read: {error}")))
}

fn no_block(path: &Path, what: &str, block: &str) -> EtcdError {
    unusable_file(path, what, &format!("holds no PEM block '{block}'"))
}

fn unusable_file(path: &Path, what: &str, why: &dyn fmt::Display) -> EtcdError {
    EtcdError::Configuration(format!("The {what} file '{}' {why}.", path.display()))
}

/// Trusts what webpki trusts, and, as Go's clients of etcd do, a certificate that is itself one of the trusted
/// ones: a single self-signed certificate (`openssl req -x509` makes it a CA's) is then both.
#[derive(Debug)]
struct Trust {
    chain: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn new(
        files: &TlsFiles,
        trusted: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, EtcdError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        if roots.is_empty() {
            let why = match files.ca_cert {
                Some(_) => "the CA file holds no certificate that can be read",
                None => "this system has no CA certificates, and none was given",
            };
            return Err(unusable(files, &why));
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| unusable(files, &error))?;
        Ok(Self { chain, trusted })
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_chain = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match by_chain {
            // Its time has been looked at before either of the two (webpki's `verify_cert.rs`).
            Err(Error::InvalidCertificate(error))
                if (is_of_a_ca(&error) || matches!(error, CertificateError::UnknownIssuer))
                    && self.trusted.iter().any(|trusted| trusted == end_entity) =>
            {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
                if self.trusted.iter().any(is_of_a_secret) && is_of_a_secret(end_entity) =>
            {
                let error = OtherError(Arc::new(OtherSecret));
                Err(Error::InvalidCertificate(CertificateError::Other(error)))
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The certificate is one of a quorum, made of another secret than ours.
#[derive(Debug, thiserror::Error)]
#[error("made of another secret")]
pub struct OtherSecret;

/// The CA's name stands in it, as that of its issuer or its own.
fn is_of_a_secret(certificate: &CertificateDer<'_>) -> bool {
    let name = AUTHORITY.as_bytes();
    certificate.windows(name.len()).any(|part| part == name)
}

fn is_of_a_ca(error: &CertificateError) -> bool {
    webpki_error(error) == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// What rustls has no name for.
pub fn webpki_error(error: &CertificateError) -> Option<&webpki::Error> {
    other(error)
}

pub fn is_of_another_secret(error: &CertificateError) -> bool {
    other::<OtherSecret>(error).is_some()
}

fn other<E: std::error::Error + 'static>(error: &CertificateError) -> Option<&E> {
    match error {
        CertificateError::Other(other) => other.0.downcast_ref(),
        _ => None,
    }
}
