//! The beanstalkd broker of anyqueue.
