//! In the making.
mod policy;
pub use policy::{Backoff, Lease, Policy};
mod drivers;
pub mod settings;
pub use drivers::Drivers;
pub use settings::Settings;
