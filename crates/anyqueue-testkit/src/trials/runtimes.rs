//! C22, the adapter's part: what a broker needs to go on is done by the runtime in which it was connected.

use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use anyqueue_core::{BoxError, Create, Settlement};
use tokio::sync::oneshot;

use crate::rig::{Rig, consume, done, incoming, one, reserve, send, settle, take};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

const SOON: Duration = Duration::from_secs(10);

/// Who sends from another runtime may block that one, and end it: nobody else waits for what was begun there.
pub(super) async fn c22_a_blocked_runtime_stops_nobody(rig: &Rig) -> Outcome {
    if rig.is_movable() {
        return not_applicable("the clock is movable: it jumps while another thread works");
    }
    let (broker, queue, _) = rig.open("blocked").await?;
    let (tell, told) = oneshot::channel();
    let (free, blocked) = mpsc::channel::<()>();
    let (sending, to) = (broker.clone(), queue.clone());
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sent = runtime.block_on(async {
            let sent = sending.send(&to, &[Sample::new(1).envelope()]).await.remove(0);
            // What a client does behind the answer: a connection goes back to where others find it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            sent
        });
        // The trial may have failed meanwhile.
        drop(tell.send(sent));
        // Nothing that this runtime has to do is done any more.
        let _ = blocked.recv();
        Ok::<_, std::io::Error>(())
    });
    told.await??;
    // Several at once, so that every connection that lies ready is used.
    let one_each = |n| [Sample::new(n).envelope()];
    let (a, b, c, d) = (one_each(2), one_each(3), one_each(4), one_each(5));
    let sent = async |task| send(&*broker, &queue, task).await;
    tokio::try_join!(sent(&a), sent(&b), sent(&c), sent(&d))?;
    let mut consumer = consume(&*broker, &queue).await?;
    let settler = consumer.settler();
    let mut got = take(&mut *consumer, 5, SOON).await?;
    assert_eq!(got.len(), 5, "tasks of which one was sent from a runtime that is blocked now");
    let retry = Settlement::Retry(incoming(&got[0]).failed(Duration::ZERO));
    settle(&*settler, &got[0].receipt, retry).await?;
    let again = one(&mut *consumer, SOON).await?;
    assert_eq!(Sample::number(&again), Sample::number(&got[0]));
    got[0] = again;
    done(&*settler, &got).await?;
    drop(free);
    other.join().map_err(|_| BoxError::from("the other thread panicked"))??;
    send(&*broker, &queue, &[Sample::new(6).envelope()]).await?;
    let last = one(&mut *consumer, SOON).await?;
    assert_eq!(Sample::number(&last), Some(6), "sent when the other runtime had ended");
    done(&*settler, &[last]).await?;
    passed()
}

/// Who is blocked while a connection is made for it holds nothing for which others wait.
pub(super) async fn c22_a_sender_blocked_half_way_stops_nobody(rig: &Rig) -> Outcome {
    if rig.is_movable() {
        return not_applicable("the clock is movable: it jumps while another thread works");
    }
    let (_, queue, _) = rig.open("half-way").await?;
    let url = rig.stage.proxied.as_ref().map_or(&rig.stage.url, |(url, _)| url);
    // To one that has sent nothing yet, and to one whose connections have just broken.
    for broken in [false, true] {
        let broker = rig.connect_with(url, Create::Auto).await?;
        broker.declare(&queue).await?;
        let mut consumer = consume(&*broker, &queue).await?;
        if broken {
            let Some((_, proxy)) = &rig.stage.proxied else { break };
            send(&*broker, &queue, &[Sample::new(1).envelope()]).await?;
            done(&*consumer.settler(), &take(&mut *consumer, 1, SOON).await?).await?;
            proxy.cut();
        }
        let (tell, told) = oneshot::channel();
        let (free, blocked) = mpsc::channel::<()>();
        let (sending, to) = (broker.clone(), queue.clone());
        let other = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let task = [Sample::new(2).envelope()];
                let mut sending = sending.send(&to, &task);
                let begun = std::future::poll_fn(|context| Poll::Ready(sending.as_mut().poll(context).is_pending())).await;
                let _ = tell.send(begun);
                let _ = blocked.recv();
                // It may have been too late for it by then.
                if begun {
                    drop(sending.await);
                }
            });
            Ok::<_, std::io::Error>(())
        });
        let others = async {
            told.await?;
            let until = rig.now() + SOON;
            // A broken connection may cost a try.
            while let Err(error) = send(&*broker, &queue, &[Sample::new(3).envelope()]).await {
                assert!(error.is_retryable() && rig.now() < until, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let third = loop {
                let came = reserve(&mut *consumer, 1, SOON).await;
                assert!(rig.now() < until, "it did not come: {came:?}");
                let got = came.unwrap_or_default().pop();
                if let Some(got) = got.filter(|got| Sample::number(got) == Some(3)) {
                    break got;
                }
            };
            settle(&*consumer.settler(), &third.receipt, Settlement::Retry(incoming(&third).failed(Duration::ZERO))).await?;
            Ok::<_, BoxError>(())
        };
        tokio::time::timeout(SOON * 3, others).await.map_err(|_| "others wait for one that is blocked")??;
        drop(free);
        other.join().map_err(|_| BoxError::from("the other thread panicked"))??;
        broker.close().await?;
    }
    passed()
}
