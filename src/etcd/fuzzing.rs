//! What the fuzz targets in `fuzz/` run of the client. A failed assertion is a finding.

use super::endpoint::parse_endpoints;

/// What is accepted is accepted again as it is shown, and is an address for the connection.
pub fn read_endpoints(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_endpoints(text, text.len().is_multiple_of(2)) {
        Ok(endpoints) => {
            assert!(!endpoints.is_empty());
            for endpoint in &endpoints {
                let shown = endpoint.to_string();
                assert_eq!(parse_endpoints(&shown, !endpoint.tls), Ok(vec![endpoint.clone()]));
                let taken = tonic::transport::Endpoint::from_shared(shown.clone());
                assert!(taken.is_ok(), "{shown}: {taken:?}");
            }
        }
        Err(error) => assert!(error.to_string().contains("is not valid")),
    }
}
