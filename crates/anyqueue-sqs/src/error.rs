//! Foreign errors become ours here.

use anyqueue_core::{Error, ErrorKind, chain};
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::BatchResultErrorEntry;

type Kinds = &'static [(&'static str, ErrorKind, &'static str)];

/// What SQS's codes mean. Nothing has happened with any of them.
const CODES: Kinds = &[
    ("QueueDoesNotExist", ErrorKind::NotFound, "the queue is not on SQS; run `queue-runner init`"),
    ("NonExistentQueue", ErrorKind::NotFound, "the queue is not on SQS; run `queue-runner init`"),
    (
        "AccessDenied",
        ErrorKind::Denied,
        "SQS denies this right; the documentation of anyqueue-sqs has a policy with those needed",
    ),
    ("InvalidClientTokenId", ErrorKind::Denied, "AWS does not know this access key"),
    ("UnrecognizedClient", ErrorKind::Denied, "AWS does not know this access key"),
    ("SignatureDoesNotMatch", ErrorKind::Denied, "AWS refuses the signature; check the secret of the access key"),
    ("ExpiredToken", ErrorKind::Denied, "the credentials have expired; log in anew"),
    ("MissingAuthenticationToken", ErrorKind::Denied, "AWS misses credentials"),
    (
        "KmsAccessDenied",
        ErrorKind::Denied,
        "the key that encrypts the queue may not be used; grant `kms:GenerateDataKey` and `kms:Decrypt`",
    ),
    ("RequestThrottled", ErrorKind::Throttled, "SQS asks for fewer requests"),
    ("Throttling", ErrorKind::Throttled, "SQS asks for fewer requests"),
    ("KmsThrottled", ErrorKind::Throttled, "KMS asks for fewer requests"),
    ("TooManyRequests", ErrorKind::Throttled, "SQS asks for fewer requests"),
    (
        "OverLimit",
        ErrorKind::Full,
        "the queue has as many tasks reserved as SQS allows, 120,000, or 20,000 of a FIFO queue; let workers settle some",
    ),
    ("PurgeQueueInProgress", ErrorKind::Busy, "SQS purges a queue once a minute only; try again later"),
    ("QueueDeletedRecently", ErrorKind::Busy, "a queue of this name was deleted less than a minute ago; wait"),
    ("ReceiptHandleIsInvalid", ErrorKind::LeaseLost, "the lease has ended; another worker may hold the task"),
    ("MessageNotInflight", ErrorKind::LeaseLost, "the lease has ended; another worker may hold the task"),
    ("BatchRequestTooLong", ErrorKind::Invalid, "the request is larger than SQS takes"),
    ("InvalidMessageContents", ErrorKind::Invalid, "the body has characters that SQS refuses; send the data as binary"),
];

/// What SQS says of a receipt handle whose message is gone or visible again, under a code that means many things.
const GONE: [&str; 3] = ["does not exist", "not available for visibility", "receipt handle has expired"];

/// The kind of an error, and what to do next, by SQS's code, or by its words where the code says too little.
fn known(code: &str, message: &str) -> Option<(ErrorKind, &'static str)> {
    let code = code.rsplit(['.', '#']).next().unwrap_or(code);
    let mut code = code.trim_end_matches("Exception");
    let message = message.to_ascii_lowercase();
    if code == "InvalidParameterValue" && GONE.iter().any(|words| message.contains(words)) {
        code = "MessageNotInflight";
    }
    CODES.iter().find(|known| known.0 == code).map(|known| (known.1, known.2))
}

/// The error of a request.
pub(crate) fn of<E>(error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let text = chain(&error);
    match &error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or_default().to_owned();
            match known(&code, service.err().message().unwrap_or_default()) {
                Some((kind, what)) => Error::new(kind, what).because(said(service.err())),
                None if service.raw().status().as_u16() >= 500 => {
                    Error::unavailable("SQS has trouble of its own").effect_unknown().because(said(service.err()))
                }
                None => Error::new(ErrorKind::Protocol, "SQS refused a request").because(said(service.err())),
            }
        }
        SdkError::TimeoutError(_) => Error::new(ErrorKind::Timeout, "SQS does not answer in time").effect_unknown(),
        SdkError::DispatchFailure(failure) if failure.is_io() || failure.is_timeout() => {
            let error = Error::unavailable("SQS cannot be reached").because(text.clone());
            if text.contains("(Connect)") { error } else { error.effect_unknown() }
        }
        SdkError::DispatchFailure(_) if text.contains("redential") || text.contains("dentity") => {
            let what = "no credentials are to be had; set a profile, environment variables, or a role of the machine";
            Error::new(ErrorKind::Denied, what).because(text)
        }
        SdkError::ConstructionFailure(_) => Error::config("the request could not be made").because(text),
        _ => Error::unavailable("SQS gave no usable answer").effect_unknown().because(text),
    }
}

fn said(error: &impl ProvideErrorMetadata) -> String {
    format!("{}: {}", error.code().unwrap_or("no code"), error.message().unwrap_or("no message"))
}

/// The error of one item of a batch.
pub(crate) fn of_entry(entry: &BatchResultErrorEntry) -> Error {
    let said = format!("{}: {}", entry.code(), entry.message().unwrap_or("no message"));
    match known(entry.code(), entry.message().unwrap_or_default()) {
        Some((kind, what)) => Error::new(kind, what).because(said),
        None if !entry.sender_fault() => Error::unavailable("SQS has trouble of its own").effect_unknown().because(said),
        None => Error::new(ErrorKind::Protocol, "SQS refused an item of a batch").because(said),
    }
}

/// An item of a batch of which the answer says nothing.
pub(crate) fn unanswered() -> Error {
    Error::new(ErrorKind::Protocol, "SQS's answer leaves out an item of the batch").effect_unknown()
}

/// An item that was not sent because one before it failed.
pub(crate) fn behind() -> Error {
    Error::unavailable("an earlier task of the batch could not be sent, and a FIFO queue keeps their order; send both again")
}

/// The error of a handle that was closed.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this broker was closed; connect again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_known_in_every_spelling() {
        for (code, kind) in [
            ("AWS.SimpleQueueService.NonExistentQueue", ErrorKind::NotFound),
            ("com.amazonaws.sqs#QueueDoesNotExist", ErrorKind::NotFound),
            ("QueueDoesNotExist", ErrorKind::NotFound),
            ("ThrottlingException", ErrorKind::Throttled),
            ("RequestThrottled", ErrorKind::Throttled),
            ("AccessDeniedException", ErrorKind::Denied),
            ("AWS.SimpleQueueService.PurgeQueueInProgress", ErrorKind::Busy),
            ("OverLimit", ErrorKind::Full),
        ] {
            assert_eq!(known(code, "").map(|known| known.0), Some(kind), "{code}");
        }
        assert!(known("SomethingElse", "Message does not exist").is_none());
        assert!(known("InvalidParameterValue", "Value 43200 for parameter VisibilityTimeout is invalid.").is_none());
        for message in [
            "Value AQ for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change.",
            "Value AQ for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.",
        ] {
            let (kind, _) = known("InvalidParameterValue", message).unwrap();
            assert_eq!(kind, ErrorKind::LeaseLost, "{message}");
        }
    }

    #[test]
    fn the_fault_of_an_item_decides_whether_to_try_again() {
        let entry =
            |code: &str, sender| BatchResultErrorEntry::builder().id("0").code(code).sender_fault(sender).build().unwrap();
        assert!(of_entry(&entry("InternalError", false)).is_retryable());
        assert!(!of_entry(&entry("InvalidParameterValue", true)).is_retryable());
        assert!(of_entry(&entry("ReceiptHandleIsInvalid", true)).is_lease_lost());
    }
}
