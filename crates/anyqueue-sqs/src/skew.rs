//! How far SQS's clock is from ours: what it says in the head of an answer.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_sqs::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use aws_sdk_sqs::primitives::{DateTime, DateTimeFormat};

/// Keeps the `Date` of an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dated(Arc<Mutex<Option<i64>>>);

impl Dated {
    /// The date, in milliseconds since 1970: SQS gives whole seconds.
    pub(crate) fn get(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Dated {
    fn name(&self) -> &'static str {
        "anyqueue-date"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date =
            context.response().headers().get("date").and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date.map(|date| date.secs() * 1000);
        Ok(())
    }
}

/// What is to be added to our time to have that of an answer which says `date`, asked for and had at two moments of ours.
/// A difference that the seconds of `date` explain is none; another one is the least that there may be, so that what is
/// counted from it is rather too early.
pub(crate) fn skew(date: i64, asked: i64, had: i64) -> i64 {
    let (least, most) = (date - had, date + 1000 - asked);
    if least <= 0 && most >= 0 { 0 } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_agree_are_taken_as_they_are_and_others_are_corrected() {
        assert_eq!(skew(5000, 5300, 5350), 0);
        assert_eq!(skew(5000, 4900, 5001), 0, "the answer crossed a second");
        assert_eq!(skew(125_000, 5300, 5350), 119_650, "ours is two minutes late");
        assert_eq!(skew(5000, 125_300, 125_350), -120_350, "ours is two minutes early");
    }
}
