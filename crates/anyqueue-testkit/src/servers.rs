//! Servers as the tests start them: private, with their data on disk.

pub mod beanstalkd;
pub mod gearmand;
pub mod rabbitmq;
pub mod redis;
pub mod sqs;
