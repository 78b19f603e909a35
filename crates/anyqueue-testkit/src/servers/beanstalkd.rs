//! A beanstalkd with its binlog on.
