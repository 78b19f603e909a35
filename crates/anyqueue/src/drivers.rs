//! Which adapters can be chosen. The only place that names them.

use anyqueue_core::{Driver, Error, Result, suggest};

/// Adapters by the features that bring them in, with their schemes: so that a broker left out of a build is told from a typo.
const OPTIONAL: &[(&str, &[&str], Option<&Driver>)] = &[
    #[cfg(feature = "memory")]
    ("memory", anyqueue_memory::DRIVER.schemes, Some(&anyqueue_memory::DRIVER)),
    #[cfg(not(feature = "memory"))]
    ("memory", &["memory"], None),
    #[cfg(feature = "sqlite")]
    ("sqlite", anyqueue_sqlite::DRIVER.schemes, Some(&anyqueue_sqlite::DRIVER)),
    #[cfg(not(feature = "sqlite"))]
    ("sqlite", &["sqlite"], None),
    #[cfg(feature = "beanstalkd")]
    ("beanstalkd", anyqueue_beanstalkd::DRIVER.schemes, Some(&anyqueue_beanstalkd::DRIVER)),
    #[cfg(not(feature = "beanstalkd"))]
    ("beanstalkd", &["beanstalkd", "beanstalk"], None),
    #[cfg(feature = "redis")]
    ("redis", anyqueue_redis::DRIVER.schemes, Some(&anyqueue_redis::DRIVER)),
    #[cfg(not(feature = "redis"))]
    ("redis", &["redis", "rediss"], None),
    #[cfg(feature = "sqs")]
    ("sqs", anyqueue_sqs::DRIVER.schemes, Some(&anyqueue_sqs::DRIVER)),
    #[cfg(not(feature = "sqs"))]
    ("sqs", &["sqs"], None),
    #[cfg(feature = "gearman")]
    ("gearman", anyqueue_gearman::DRIVER.schemes, Some(&anyqueue_gearman::DRIVER)),
    #[cfg(not(feature = "gearman"))]
    ("gearman", &["gearman", "gearmand"], None),
    #[cfg(feature = "rabbitmq")]
    ("rabbitmq", anyqueue_rabbitmq::DRIVER.schemes, Some(&anyqueue_rabbitmq::DRIVER)),
    #[cfg(not(feature = "rabbitmq"))]
    ("rabbitmq", &["amqp", "amqps", "rabbitmq"], None),
];

/// The drivers that brokers are chosen from.
#[derive(Debug, Clone, Default)]
pub struct Drivers(Vec<Driver>);

impl Drivers {
    /// No driver at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// The drivers whose features are on.
    pub fn enabled() -> Self {
        Self(OPTIONAL.iter().filter_map(|(_, _, driver)| driver.copied()).collect())
    }

    /// Adds a driver; its schemes win over those added before.
    #[must_use]
    pub fn with(mut self, driver: &Driver) -> Self {
        self.0.insert(0, *driver);
        self
    }

    /// All of them, in the order in which tables show them.
    pub fn iter(&self) -> impl Iterator<Item = &Driver> {
        self.0.iter()
    }

    /// The driver of a URL scheme.
    ///
    /// # Errors
    /// [`Config`](anyqueue_core::ErrorKind::Config): names the feature of one that was left out, or lists the known schemes.
    pub fn find(&self, scheme: &str) -> Result<&Driver> {
        if let Some(driver) = self.0.iter().find(|driver| driver.schemes.contains(&scheme)) {
            return Ok(driver);
        }
        if let Some((feature, ..)) = OPTIONAL.iter().find(|(_, schemes, _)| schemes.contains(&scheme)) {
            return Err(Error::config(format!(
                "the broker `{scheme}:` was left out of this build; build it with `--features {feature}`"
            )));
        }
        let known: Vec<&str> = self.0.iter().flat_map(|driver| driver.schemes).copied().collect();
        Err(Error::config(format!("no broker has the URL scheme `{scheme}`; {}", suggest(scheme, known))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_left_out_of_the_build_is_told_from_a_typo() {
        let error = Drivers::none().find("sqlite").unwrap_err().to_string();
        assert!(error.ends_with("`--features sqlite`"), "{error}");
        let error = Drivers::none().find("sqlit").unwrap_err().to_string();
        assert_eq!(error, "no broker has the URL scheme `sqlit`; none are known");
    }

    #[cfg(all(feature = "memory", feature = "sqlite"))]
    #[test]
    fn the_enabled_ones_are_found_and_a_typo_is_answered() {
        let drivers = Drivers::enabled();
        assert_eq!(drivers.find("sqlite").unwrap().name, "sqlite");
        assert_eq!(drivers.find("memory").unwrap().name, "memory");
        let error = drivers.find("sqlit").unwrap_err().to_string();
        assert!(error.contains("did you mean `sqlite`?"), "{error}");
    }
}
