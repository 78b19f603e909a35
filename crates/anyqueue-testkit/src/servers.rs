//! Servers as the tests start them: private, with their data on disk.

pub mod beanstalkd;
pub mod rabbitmq;
pub mod redis;
