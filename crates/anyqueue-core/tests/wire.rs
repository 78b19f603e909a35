//! The wire form: files that must not change, and any payload there and back.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

use std::time::Duration;

use anyqueue_core::{Bytes, Data, Defaults, HeldNote, Incoming, NativeFacts, Peeked, State, TaskId, Wire};
use proptest::prelude::*;

const FIRST_SYSTEM: &str = include_str!("golden/first_system.json");
const EVERY_FIELD: &str = include_str!("golden/every_field.json");
const BINARY: &str = include_str!("golden/binary.json");
const UNREADABLE: &str = include_str!("golden/unreadable.json");
const FOREIGN: &str = include_str!("golden/foreign.json");
const FOREIGN_REWRITTEN: &str = include_str!("golden/foreign_rewritten.json");

fn read(body: &'static str) -> Wire {
    Wire::read(&Bytes::from_static(body.as_bytes())).unwrap()
}

fn write(wire: &Wire) -> String {
    String::from_utf8(wire.write().to_vec()).unwrap()
}

fn json(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn a_payload_of_the_first_system_is_read_and_written_as_it_is() {
    let wire = read(FIRST_SYSTEM);
    let expected = Wire { store: "0".into(), ..Wire::new("test", Data::raw_json(r#"{"message":"hello"}"#).unwrap()) };
    assert_eq!(wire, expected);
    assert_eq!(write(&wire), FIRST_SYSTEM, "its workers can read ours");
}

#[test]
fn every_field_has_its_place() {
    let id: TaskId = "01936b2e-7d3a-7c4e-8f21-0123456789ab".parse().unwrap();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let expected = Wire {
        task: "render".into(),
        store: "nl".into(),
        data: Data::Json(json(r#"{"order": 7,"lines":[1.50,2e3,12345678901234567890123]}"#)),
        id: Some(id),
        priority: Some(512),
        ttr: Some(Duration::from_secs(90)),
        sent_at: Some(1_763_769_600_123),
        failed: 2,
        crashed: 1,
        probation: true,
        unknown_since: Some(1_763_769_600_456),
        held: Some(HeldNote { reason: "no disk\nleft".into(), at: 1_763_769_600_789, failed: 8, crashed: 3 }),
        checkpoint: Some(json(r#"{"row": 41}"#)),
        headers: vec![("traceparent".into(), trace.into()), ("x".into(), "é".into())],
        extra: vec![("zeta".into(), json("[1, 2]")), ("alpha".into(), json("null")), ("Beta".into(), json(r#"{"a":"\u00e9"}"#))],
    };
    assert_eq!(read(EVERY_FIELD), expected);
    assert_eq!(write(&expected), EVERY_FIELD);
    assert_eq!(expected.header("x"), Some("é"));
}

#[test]
fn binary_data_travels_as_base64() {
    let wire = read(BINARY);
    assert_eq!(wire.data, Data::Binary(Bytes::from_static(b"\x00\x01\xFE\xFF hello")));
    assert_eq!(wire.ttr, Some(Duration::from_millis(1500)));
    assert_eq!(write(&wire), BINARY);
}

#[test]
fn an_unreadable_body_is_wrapped_whole() {
    let wire = read(UNREADABLE);
    assert_eq!(wire.data, Data::Unreadable(Bytes::from_static(b"\xFF\x00 not json")));
    assert_eq!(write(&wire), UNREADABLE);
}

#[test]
fn foreign_keys_stay_in_order_and_a_foreign_id_is_kept_beside() {
    let wire = read(FOREIGN);
    assert_eq!((wire.task.as_str(), wire.store.as_str(), wire.id, wire.failed), ("t", "7", None, 0));
    assert_eq!(write(&wire), FOREIGN_REWRITTEN);
    assert_eq!(write(&read(FOREIGN_REWRITTEN)), FOREIGN_REWRITTEN, "and again at the next republish");
}

#[test]
fn what_is_wrong_with_a_body_is_said() {
    for (body, why) in [
        ("", "EOF"),
        ("[1]", "a JSON object"),
        ("{}", "`task`"),
        (r#"{"task":7}"#, "string"),
        (r#"{"task":"t","data_encoding":"rot13"}"#, "`rot13` is not known"),
        (r#"{"task":"t","data":{"base64":"%"},"data_encoding":"base64"}"#, "Invalid symbol"),
        (r#"{"task":"t","store":{}}"#, "`store` is not a text"),
        (r#"{"task":"t","ttr":-1}"#, "no number of seconds"),
        (r#"{"task":"t","headers":{"a":1}}"#, "header `a` is 1"),
        (r#"{"task":"t"} x"#, "trailing characters"),
    ] {
        let error = Wire::read(&Bytes::from_static(body.as_bytes())).unwrap_err().to_string();
        assert!(error.contains(why), "{body}: {error}");
    }
}

#[test]
fn deep_and_wide_data_is_not_looked_into() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let data = Data::raw_json(deep.clone()).unwrap();
    let body = Wire::new("t", data).write();
    assert_eq!(Wire::read(&body).unwrap().data.bytes(), deep.as_bytes());
}

/// Texts with what brokers and parsers stumble over.
fn text() -> impl Strategy<Value = String> {
    let awkward = proptest::sample::select(vec![
        '\u{0}',
        '\u{1}',
        '\t',
        '\n',
        '\r',
        '"',
        '\\',
        '/',
        '\u{7f}',
        '\u{85}',
        '\u{2028}',
        '\u{d7ff}',
        '\u{e000}',
        '\u{feff}',
        '\u{fffd}',
        '\u{fffe}',
        '\u{ffff}',
        '\u{1fffe}',
        '\u{10ffff}',
    ]);
    proptest::collection::vec(prop_oneof![any::<char>(), awkward], 0..24).prop_map(String::from_iter)
}

/// JSON as other programs write it: spaces, exponents, numbers beyond any machine type, raw and escaped characters.
fn json_text() -> impl Strategy<Value = String> {
    let quoted = text().prop_map(|text| serde_json::to_string(&text).unwrap());
    let number = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        "-?[1-9][0-9]{0,60}(\\.[0-9]{1,40})?([eE][+-]?[0-9]{1,5})?",
        Just("-0.0".to_owned()),
    ];
    let leaf = prop_oneof![Just("null".to_owned()), Just("true".to_owned()), number, quoted];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let member =
            (text(), inner.clone()).prop_map(|(key, value)| format!("{} :\t{value}", serde_json::to_string(&key).unwrap()));
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(|items| format!("[ {} ]", items.join(" ,\n"))),
            proptest::collection::vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(","))),
        ]
    })
}

/// JSON text in the form in which it stands on the wire.
fn wire_json() -> impl Strategy<Value = Bytes> {
    json_text().prop_map(|text| Data::raw_json(text).unwrap().bytes().clone())
}

fn data() -> impl Strategy<Value = Data> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    prop_oneof![wire_json().prop_map(Data::Json), bytes().prop_map(Data::Binary), bytes().prop_map(Data::Unreadable)]
}

fn held() -> impl Strategy<Value = HeldNote> {
    (text(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(reason, at, failed, crashed)| HeldNote {
        reason,
        at,
        failed,
        crashed,
    })
}

const KNOWN: [&str; 16] = [
    "task",
    "store",
    "data",
    "data_encoding",
    "id",
    "priority",
    "ttr",
    "sent_at",
    "failed",
    "crashed",
    "probation",
    "unknown_since",
    "held",
    "checkpoint",
    "headers",
    "foreign_id",
];

fn wire() -> impl Strategy<Value = Wire> {
    let option = proptest::option::of::<BoxedStrategy<u64>>;
    let times = (option(any::<u64>().boxed()), option(any::<u64>().boxed()), option((0..5_000_000_000u64).boxed()));
    let counts = (any::<u32>(), any::<u32>(), any::<bool>(), proptest::option::of(any::<u32>()));
    let kept = (
        proptest::option::of(held()),
        proptest::option::of(wire_json()),
        proptest::collection::btree_map(text(), text(), 0..4),
        proptest::collection::vec((text(), wire_json()), 0..4),
    );
    let id = proptest::option::of(any::<[u8; 16]>());
    (text(), text(), data(), id, times, counts, kept).prop_map(|(task, store, data, id, times, counts, kept)| Wire {
        task,
        store,
        data,
        id: id.map(TaskId::from_bytes),
        priority: counts.3,
        ttr: times.2.map(Duration::from_millis),
        sent_at: times.0,
        failed: counts.0,
        crashed: counts.1,
        probation: counts.2,
        unknown_since: times.1,
        held: kept.0,
        checkpoint: kept.1,
        headers: kept.2.into_iter().collect(),
        extra: kept.3.into_iter().filter(|(key, _)| !KNOWN.contains(&key.as_str())).collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_payload_comes_back(wire in wire()) {
        let body = wire.write();
        let text = std::str::from_utf8(&body).unwrap();
        prop_assert!(!text.contains(['\u{fffe}', '\u{ffff}']), "some brokers refuse these two: {text}");
        prop_assert!(text.starts_with("{\"task\":"), "the first key");
        let back = Wire::read(&body).unwrap();
        prop_assert_eq!(&back, &wire);
        prop_assert_eq!(back.write(), body);
    }

    #[test]
    fn any_value_comes_back_as_itself(text in text(), number in any::<f64>(), list in proptest::collection::vec(any::<u64>(), 0..9)) {
        let value = serde_json::json!({ text.clone(): [text, number, list] });
        let body = Wire::new("t", Data::json(&value).unwrap()).write();
        let back: serde_json::Value = serde_json::from_slice(Wire::read(&body).unwrap().data.bytes()).unwrap();
        prop_assert_eq!(back, value);
    }

    #[test]
    fn any_bytes_are_read_or_kept(raw in proptest::collection::vec(any::<u8>(), 0..80), prefix in any::<bool>()) {
        let mut body = if prefix { b"{\"task\":\"t\",".to_vec() } else { Vec::new() };
        body.extend(raw);
        let body = Bytes::from(body);
        let peeked = Peeked { raw: body.clone(), native: NativeFacts::default(), state: State::Ready, remaining: None };
        let task = Incoming::peeked(&peeked, "default", "q", Defaults::default());
        if task.unreadable.is_some() {
            let held = task.held("cannot be read", false, std::time::SystemTime::UNIX_EPOCH);
            prop_assert_eq!(Wire::read(&held.body).unwrap().data, Data::Unreadable(body));
        }
    }
}
