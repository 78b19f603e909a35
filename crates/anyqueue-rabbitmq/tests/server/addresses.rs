//! Several addresses, and TLS.

use std::path::Path;

use anyqueue_testkit::Proxy;

use super::*;

async fn works(broker: &dyn Broker, queue: &QueueName, number: u64) {
    let until = Instant::now() + SOON;
    while let Err(error) = broker.send(queue, &[Sample::new(number).envelope()]).await.remove(0) {
        assert!(error.is_retryable() && Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_address_is_taken_when_one_is_down() {
    let node = node().await;
    let (proxy, queue) = (Proxy::start(node.address()).await.unwrap(), name("addresses"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("amqp://{nobody},{},{}", proxy.address(), node.address());
    let mut options = ConnectOptions::new(&url, Arc::new(SystemClock)).unwrap();
    options.timeout = Duration::from_secs(3);
    let broker = anyqueue_rabbitmq::DRIVER.open(options).await.unwrap();
    broker.declare(&queue).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    works(&*broker, &queue, 1).await;
    assert_eq!(Sample::number(&next(&mut *consumer).await), Some(1));
    assert_eq!(broker.info().reconnects, 0);
    proxy.refuse(true);
    proxy.cut();
    works(&*broker, &queue, 2).await;
    let got = next(&mut *consumer).await;
    assert!(Sample::number(&got).is_some_and(|number| number <= 2));
    assert!(broker.info().reconnects > 0);
}

fn openssl(folder: &Path, arguments: &str) {
    let made = std::process::Command::new("openssl").current_dir(folder).args(arguments.split_whitespace()).output().unwrap();
    assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn authority(folder: &Path, name: &str) {
    openssl(folder, &format!("req -x509 {KEY} -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}"));
}

fn certificate(folder: &Path, name: &str) {
    let subject = format!("-subj /CN={name} -addext subjectAltName=IP:127.0.0.1");
    openssl(folder, &format!("req {KEY} -keyout {name}.key -out {name}.csr {subject}"));
    let signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copyall";
    openssl(folder, &format!("x509 -req -in {name}.csr {signed} -out {name}.pem"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_certificate_is_trusted_if_the_settings_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = |file: &str| folder.path().join(file).display().to_string();
    authority(folder.path(), "ca");
    authority(folder.path(), "stranger");
    certificate(folder.path(), "server");
    certificate(folder.path(), "worker");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = [
        format!("listeners.ssl.1 = 127.0.0.1:{port}"),
        format!("ssl_options.cacertfile = {}", path("ca.pem")),
        format!("ssl_options.certfile = {}", path("server.pem")),
        format!("ssl_options.keyfile = {}", path("server.key")),
        "ssl_options.verify = verify_peer".into(),
        "ssl_options.fail_if_no_peer_cert = true".into(),
    ];
    let _node = start("", settings).await;
    let open = |authority: &str, own: bool| {
        let mut query = format!("tls_ca={}", path(authority));
        if own {
            query += &format!("&tls_certificate={}&tls_key={}", path("worker.pem"), path("worker.key"));
        }
        let mut options = ConnectOptions::new(&format!("amqps://127.0.0.1:{port}?{query}"), Arc::new(SystemClock)).unwrap();
        options.timeout = Duration::from_secs(5);
        async move { anyqueue_rabbitmq::DRIVER.open(options).await }
    };
    assert!(open("stranger.pem", true).await.is_err(), "a certificate that nobody vouches for");
    assert!(open("ca.pem", false).await.is_err(), "the server wants to see ours");
    let (broker, queue) = (open("ca.pem", true).await.unwrap(), name("tls"));
    broker.declare(&queue).await.unwrap();
    works(&*broker, &queue, 1).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let delivery = next(&mut *consumer).await;
    assert_eq!(Sample::number(&delivery), Some(1));
    settle(&*consumer, &delivery, Settlement::Done).await;
}
