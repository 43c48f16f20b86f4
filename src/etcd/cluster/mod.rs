//! Which connection a client uses, and when it leaves it: the endpoints and all addresses of their names are
//! candidates, tried a little apart, at a pace that spares a cluster in trouble.

mod backoff;
mod candidates;
mod causes;
mod choice;
mod endpoints;
mod pace;
mod race;

pub use backoff::Backoff;
pub use causes::Causes;
pub use choice::Cluster;
pub use endpoints::Endpoints;
