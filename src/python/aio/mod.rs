//! The calls for asyncio: each gives a future of the running event loop, and blocks no thread.
//!
//! etcd's part of a call runs on the runtime's own thread, as everything does, and never attaches to Python:
//! that thread renews leases. What has to touch Python (making the result, completing the future) is done by one
//! more thread, the bridge. Cancelling the future drops what runs.

mod ask;
mod bridge;
mod client;
mod store;
mod watch;

pub use bridge::end;
pub use client::AsyncClient;
pub use store::AsyncStore;
pub use watch::AsyncWatch;
