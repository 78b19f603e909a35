//! In the making.
mod policy;
pub use policy::{Backoff, Lease, Policy};
