//! Reading single values: each reader takes what the file, the environment or a flag may hold, and says what it wants.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyqueue_core::{PriorityRange, is_address, priority, quoted, suggest, time};
use config::{Value, ValueKind};

use crate::policy::TimeLimit;

/// A value, or what is wrong with it.
pub(super) type Read<T> = std::result::Result<T, String>;

/// Writes a value into a message.
fn shown(value: &Value) -> String {
    match &value.kind {
        ValueKind::Table(_) => "a table".into(),
        ValueKind::Array(_) => "a list".into(),
        ValueKind::Nil => "nothing".into(),
        _ => quoted(&value.to_string()),
    }
}

/// A message about a value without any URL of that value.
pub(super) fn discreet(message: String, value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) if is_address(text) => {
            let text = text.trim();
            message.replace(&format!("`{text}`"), &quoted(text)).replace(text, &quoted(text))
        }
        ValueKind::Array(items) => items.iter().fold(message, discreet),
        _ => message,
    }
}

pub(super) fn text(value: &Value) -> Read<String> {
    match &value.kind {
        ValueKind::String(text) => Ok(text.clone()),
        _ => Err(format!("{} is not a text; write it in quotes", shown(value))),
    }
}

/// A text that may be a secret: never repeated in a message.
pub(super) fn secret(value: &Value) -> Read<String> {
    text(value).map_err(|_| "this is not a text; write it in quotes".into())
}

/// A number or text of one, as text.
fn scalar(value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(text) => Some(text.trim().to_owned()),
        ValueKind::I64(_) | ValueKind::U64(_) | ValueKind::Float(_) => Some(value.to_string()),
        _ => None,
    }
}

pub(super) fn whole(value: &Value, range: RangeInclusive<u64>) -> Read<u64> {
    let number = scalar(value).and_then(|text| text.replace('_', "").parse().ok()).filter(|n| range.contains(n));
    number.ok_or_else(|| match *range.end() {
        u64::MAX => format!("{} is not a whole number from {} up", shown(value), range.start()),
        last => format!("{} is not a whole number from {} to {last}", shown(value), range.start()),
    })
}

pub(super) fn count(value: &Value, range: RangeInclusive<usize>) -> Read<usize> {
    whole(value, *range.start() as u64..=*range.end() as u64).map(|n| n as usize)
}

pub(super) fn small(value: &Value, range: RangeInclusive<u32>) -> Read<u32> {
    whole(value, u64::from(*range.start())..=u64::from(*range.end())).map(|n| n as u32)
}

pub(super) fn fraction(value: &Value, range: RangeInclusive<f64>) -> Read<f64> {
    let number = scalar(value).and_then(|text| text.parse().ok()).filter(|n| range.contains(n));
    number.ok_or_else(|| format!("{} is not a number from {} to {}", shown(value), range.start(), range.end()))
}

pub(super) fn boolean(value: &Value) -> Read<bool> {
    match &value.kind {
        ValueKind::Boolean(on) => Ok(*on),
        ValueKind::String(text) if text == "true" || text == "false" => Ok(text == "true"),
        _ => Err(format!("{} is neither true nor false", shown(value))),
    }
}

pub(super) fn duration(value: &Value) -> Read<Duration> {
    let text =
        scalar(value).ok_or_else(|| format!("{} is not a duration; write `\"10m\"` or a number of seconds", shown(value)))?;
    time::parse(&text).map_err(|e| e.to_string())
}

/// A duration that cannot be nought.
pub(super) fn period(value: &Value) -> Read<Duration> {
    match duration(value)? {
        Duration::ZERO => Err(format!("{} is too short; write `\"1s\"`, say", shown(value))),
        time => Ok(time),
    }
}

/// How long one request may take. Libraries below add it to their clocks, so that it has an end.
pub(super) fn request_time(value: &Value) -> Read<Duration> {
    let longest = Duration::from_secs(3600);
    period(value).and_then(|time| if time > longest { Err(format!("{} is above the most, 1h", shown(value))) } else { Ok(time) })
}

pub(super) fn delay(value: &Value) -> Read<Duration> {
    time::check_delay(duration(value)?).map_err(|e| e.to_string())
}

/// A TTR; how long it may be at most is the broker's word, and checked when it is connected.
pub(super) fn ttr(value: &Value) -> Read<Duration> {
    time::check_ttr(duration(value)?, Duration::MAX, "nothing").map_err(|e| e.to_string())
}

pub(super) fn priority(value: &Value) -> Read<u32> {
    let text =
        scalar(value).ok_or_else(|| format!("{} is no priority; write a number or a level such as \"high\"", shown(value)))?;
    priority::parse(&text).map_err(|e| e.to_string())
}

pub(super) fn priorities(value: &Value) -> Read<PriorityRange> {
    let text = scalar(value).unwrap_or_default();
    if text == "all" {
        return Ok(PriorityRange::ALL);
    }
    if is_address(&text) {
        // Its parts are what a message would name.
        return Err("a URL is no range of priorities; write `20-40`, say".into());
    }
    text.parse().map_err(|e: anyqueue_core::Error| e.to_string())
}

/// A value that may be switched off with `"none"`.
pub(super) fn optional<T>(value: &Value, read: impl FnOnce(&Value) -> Read<T>) -> Read<Option<T>> {
    match &value.kind {
        ValueKind::String(text) if text == "none" => Ok(None),
        _ => read(value).map(Some).map_err(|e| format!("{e}; or \"none\"")),
    }
}

pub(super) fn time_limit(value: &Value) -> Read<TimeLimit> {
    optional(value, period).map(|limit| limit.map_or(TimeLimit::Off, TimeLimit::At))
}

pub(super) fn choice<T: Copy>(value: &Value, words: &[(&'static str, T)]) -> Read<T> {
    let typed = text(value)?;
    let found = words.iter().find(|(word, _)| *word == typed);
    found.map(|(_, meant)| *meant).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("`{typed}` is not one of its words; {}", suggest(&typed, known))
    })
}

pub(super) fn list(value: &Value) -> Read<Vec<String>> {
    match &value.kind {
        ValueKind::Array(items) => items.iter().map(text).collect(),
        _ => Err(format!("{} is not a list; write `[\"a\", \"b\"]`", shown(value))),
    }
}

/// A command with its arguments. A text would need a shell to be split, and there is none.
pub(super) fn command(value: &Value) -> Read<Vec<String>> {
    let words = list(value).map_err(|e| format!("{e}: the program first, then one text per argument; no shell is involved"))?;
    match words.first() {
        Some(program) if !program.trim().is_empty() => Ok(words),
        _ => Err("the program is missing; write `[\"./thumb.sh\"]`".into()),
    }
}

/// A size in bytes, with a unit: `512MB` (10⁶), `1GiB` (2³⁰), or a plain number of bytes.
pub(super) fn size(value: &Value) -> Read<u64> {
    scalar(value)
        .as_deref()
        .and_then(bytes)
        .ok_or_else(|| format!("{} is not a size; write `\"512MB\"` or `\"1GiB\"`", shown(value)))
}

fn bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "kib" => 1 << 10,
        "m" | "mb" => 1_000_000,
        "mib" => 1 << 20,
        "g" | "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        _ => return None,
    };
    let size = number.parse::<f64>().ok()? * factor as f64;
    (size >= 1.0 && size < u64::MAX as f64).then_some(size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_decimal_and_binary_units() {
        for (text, wanted) in [("512MB", 512_000_000), ("1GiB", 1 << 30), ("1.5 kib", 1536), ("7", 7)] {
            assert_eq!(size(&Value::from(text)).unwrap(), wanted, "{text}");
        }
        for bad in ["", "MB", "1XB", "-1", "0", "1..2"] {
            assert!(size(&Value::from(bad)).unwrap_err().contains("512MB"), "{bad:?}");
        }
    }

    #[test]
    fn numbers_may_be_written_as_text_and_stay_in_their_range() {
        assert_eq!(whole(&Value::from("12"), 1..=20), Ok(12));
        assert_eq!(whole(&Value::from(0), 1..=20).unwrap_err(), "`0` is not a whole number from 1 to 20");
        assert_eq!(whole(&Value::from("x"), 1..=u64::MAX).unwrap_err(), "`x` is not a whole number from 1 up");
        assert_eq!(priority(&Value::from("high")), Ok(512));
        assert_eq!(priorities(&Value::from("20-40")).unwrap().to_string(), "20-40");
    }

    #[test]
    fn a_command_is_a_list_since_no_shell_splits_it() {
        assert_eq!(command(&Value::from(vec!["./a b", "c"])).unwrap(), ["./a b", "c"]);
        assert!(command(&Value::from("./a b")).unwrap_err().contains("no shell"));
        assert!(command(&Value::from(Vec::<String>::new())).unwrap_err().contains("missing"));
    }
}
