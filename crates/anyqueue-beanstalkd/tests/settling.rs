//! Settles that take their time.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy sees in functions marked as tests only")]

mod support;

use anyqueue_core::Settlement;
use support::*;

fn job(id: u64, tube: &str, ttr: u64) -> String {
    with_body(&format!("---\nid: {id}\ntube: {tube}\nstate: reserved\npri: 1024\nage: 0\ndelay: 0\nttr: {ttr}\nreserves: 1\n"))
}

/// A wait blocks all that is sent behind it.
fn is_wait(line: &str) -> bool {
    line.starts_with("reserve-with-timeout ") && !line.ends_with(" 0")
}

#[tokio::test]
async fn nobody_waits_on_a_connection_whose_settle_is_under_way() {
    let fake = Fake::start(&[
        ("reserve-with-timeout", &["RESERVED 5 12\r\n{\"task\":\"t\"}", "TIMED_OUT"]),
        ("stats-job", &[&job(5, "q", 60)]),
        ("put", &["later: INSERTED 6"]),
    ]);
    let broker = connect(&format!("beanstalkd://{}?connections=2", fake.address)).await.unwrap();
    let mut consumer = consume(&*broker, &queue("q")).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    let mut other = consume(&*broker, &queue("other")).await;
    let waiting = tokio::spawn(async move { reserve(&mut *other, SOON * 10).await });
    let waits = || fake.lines().iter().filter(|(_, line)| is_wait(line)).count();
    eventually("another consumer waits", || async { waits() > 0 }).await;
    let settler = consumer.settler();
    let settling = tokio::spawn(async move { settler.settle(&[(got.receipt, Settlement::Retry(task(1)))]).await });
    let put = || fake.lines().iter().position(|(_, line)| line.starts_with("put "));
    eventually("the copy is on its way", || async { put().is_some() }).await;
    let before = waits();
    eventually("waits begin anew meanwhile", || async { waits() > before + 3 }).await;
    fake.open();
    settling.await.unwrap().remove(0).unwrap();
    waiting.abort();
    let (lines, put) = (fake.lines(), put().unwrap());
    let on_link: Vec<_> = lines[put + 1..].iter().filter(|(link, _)| *link == lines[put].0).map(|(_, line)| line).collect();
    let deleted = on_link.iter().position(|line| *line == "delete 5").unwrap();
    assert!(!on_link[..deleted].iter().any(|line| is_wait(line)), "{on_link:?}");
}
