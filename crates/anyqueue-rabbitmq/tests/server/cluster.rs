//! A cluster whose nodes die one after another.

use std::collections::BTreeSet;

use super::*;

/// How long it may take until all tasks of a node are with the others: a majority finds itself within seconds, and from 4.3 on
/// what consumers of a dead node had stays theirs for a minute (`consumer_disconnected_timeout`).
const FAILOVER: Duration = Duration::from_secs(120);

async fn send(broker: &dyn Broker, queue: &QueueName, number: u64, delay: Duration) {
    let until = Instant::now() + FAILOVER;
    let mut task = Sample::new(number).envelope();
    task.delay = delay;
    while let Err(error) = broker.send(queue, &[task.clone()]).await.remove(0) {
        assert!(error.is_retryable() && Instant::now() < until, "{number}: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_all_tasks_while_each_of_its_nodes_dies_once() {
    let nodes = {
        let _one = STARTS.lock().await;
        rabbitmq::start_cluster(3).await.unwrap()
    };
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let url = format!("amqp://{}", addresses.join(","));
    let connect = async || anyqueue_rabbitmq::DRIVER.open(ConnectOptions::new(&url, Arc::new(SystemClock)).unwrap()).await;
    let (broker, queue) = (connect().await.unwrap(), name("cluster"));
    broker.declare(&queue).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let mut sent = 0;
    for node in &nodes {
        let (mut open, mut done) = (BTreeSet::new(), BTreeSet::new());
        // Every fifth is on the ladder while the node dies.
        for _ in 0..20 {
            sent += 1;
            send(&*broker, &queue, sent, if sent % 5 == 0 { Duration::from_secs(3) } else { Duration::ZERO }).await;
            open.insert(sent);
        }
        let first = next(&mut *consumer).await;
        settle(&*consumer, &first, Settlement::Done).await;
        done.extend(Sample::number(&first));
        let leased = next(&mut *consumer).await;
        node.kill().await.unwrap();
        // One that knows the queue, and one that comes just now.
        for broker in [&broker, &connect().await.unwrap()] {
            sent += 1;
            send(&**broker, &queue, sent, Duration::ZERO).await;
            open.insert(sent);
        }
        // The node may have been another one than that of the connection; then the lease goes on.
        let settled = consumer.settler().settle(&[(leased.receipt.clone(), Settlement::Done)]).await.remove(0);
        match settled {
            Ok(()) => done.extend(Sample::number(&leased)),
            Err(error) => assert!(error.is_lease_lost() || error.is_retryable(), "{error}"),
        }
        let until = Instant::now() + FAILOVER;
        while done != open {
            let missing: Vec<_> = open.difference(&done).collect();
            assert!(Instant::now() < until, "{missing:?} did not come");
            // What it says while the majority finds itself is not for us.
            let got = consumer.reserve(NonZeroUsize::MIN, Duration::from_secs(1)).await.unwrap_or_default();
            for delivery in got {
                let number = Sample::number(&delivery).unwrap();
                let settled = consumer.settler().settle(&[(delivery.receipt.clone(), Settlement::Done)]).await.remove(0);
                assert!(open.contains(&number), "{number} came again, though its end was confirmed");
                if settled.is_ok() {
                    done.insert(number);
                }
            }
        }
        node.start().await.unwrap();
    }
    assert!(broker.info().reconnects > 0, "one of them had the connection");
}
