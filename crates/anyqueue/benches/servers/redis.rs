//! The least for at-least-once on Redis: bodies in a hash, a sorted set of what is ready and one of what is in flight,
//! three scripts. A script per send, all on one connection; reserves and acknowledgements 32 at a time in one pipeline.

use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script, pipe};

use crate::load::{PICKED, Payload, Raw, SENDERS, SLOTS, now, pause, rate, text};

const SEND: &str = "local id = redis.call('INCR', KEYS[1] .. ':seq')
redis.call('HSET', KEYS[1] .. ':body', id, ARGV[1])
redis.call('ZADD', KEYS[1] .. ':ready', id, id)
return id";
const RESERVE: &str = "local got = redis.call('ZPOPMIN', KEYS[1] .. ':ready', ARGV[1])
if #got == 0 then return {} end
local ids, leases = {}, {}
for i = 1, #got, 2 do
  ids[#ids + 1] = got[i]
  leases[#leases + 1] = ARGV[2]
  leases[#leases + 1] = got[i]
end
redis.call('ZADD', KEYS[1] .. ':leased', unpack(leases))
return {ids, redis.call('HMGET', KEYS[1] .. ':body', unpack(ids))}";
const DONE: &str = "if #ARGV == 0 then return 0 end
redis.call('HDEL', KEYS[1] .. ':body', unpack(ARGV))
return redis.call('ZREM', KEYS[1] .. ':leased', unpack(ARGV))";
const BATCH: usize = 32;
const KEY: &str = "raw";
/// What a waiting worker pops.
const BELL: &str = "raw:bell";

pub(crate) struct RawRedis {
    client: Client,
    connection: MultiplexedConnection,
}

impl RawRedis {
    pub(crate) async fn connect(client: Client) -> Self {
        let connection = client.get_multiplexed_async_connection().await.expect("connects");
        Self { client, connection }
    }

    async fn send(&self, senders: usize, tasks: usize) -> f64 {
        let (start, each) = (Instant::now(), tasks / senders);
        let sending = (0..senders).map(|_| {
            let mut connection = self.connection.clone();
            tokio::spawn(async move {
                let script = Script::new(SEND);
                for id in 0..each {
                    let _: i64 = script.key(KEY).arg(text(id as u64)).invoke_async(&mut connection).await.expect("sends");
                }
            })
        });
        for sender in sending.collect::<Vec<_>>() {
            sender.await.expect("no panic");
        }
        rate(each * senders, start.elapsed())
    }
}

/// Sends tasks that say when, and rings.
async fn send_slowly(mut connection: MultiplexedConnection) {
    let send = Script::new(SEND);
    let _: String = send.prepare_invoke().load_async(&mut connection).await.expect("loads");
    for n in 0..PICKED {
        tokio::time::sleep(pause(n)).await;
        let mut both = pipe();
        both.cmd("EVALSHA").arg(send.get_hash()).arg(1).arg(KEY).arg(now()).ignore();
        both.cmd("LPUSH").arg(BELL).arg(1).ignore();
        let () = both.query_async(&mut connection).await.expect("sends");
    }
}

async fn work(mut connection: MultiplexedConnection) -> usize {
    let (reserve, done) = (Script::new(RESERVE), Script::new(DONE));
    let _: String = reserve.prepare_invoke().load_async(&mut connection).await.expect("loads");
    let _: String = done.prepare_invoke().load_async(&mut connection).await.expect("loads");
    let (mut count, mut finished) = (0, Vec::<String>::new());
    loop {
        let mut both = pipe();
        both.cmd("EVALSHA").arg(done.get_hash()).arg(1).arg(KEY).arg(&finished).ignore();
        both.cmd("EVALSHA").arg(reserve.get_hash()).arg(1).arg(KEY).arg(BATCH).arg("1900000000000");
        let (got,): (Vec<Vec<String>>,) = both.query_async(&mut connection).await.expect("reserves");
        let [ids, bodies] = &got[..] else { return count };
        bodies.iter().for_each(|body| drop(serde_json::from_str::<Payload>(body).expect("a payload")));
        count += ids.len();
        finished.clone_from(ids);
    }
}

impl Raw for RawRedis {
    async fn one_by_one(&mut self, tasks: usize) -> f64 {
        let rate = self.send(1, tasks).await;
        work(self.connection.clone()).await;
        rate
    }

    async fn many(&mut self, tasks: usize) -> [f64; 2] {
        let sent = self.send(SENDERS, tasks).await;
        let start = Instant::now();
        let workers: Vec<_> = (0..SLOTS / BATCH).map(|_| tokio::spawn(work(self.connection.clone()))).collect();
        let mut count = 0;
        for worker in workers {
            count += worker.await.expect("no panic");
        }
        [sent, rate(count, start.elapsed())]
    }
}

impl crate::PickUp for RawRedis {
    async fn pick_up(&mut self) -> Option<Vec<u64>> {
        let waits = AsyncConnectionConfig::new().set_response_timeout(None);
        let mut waiting = self.client.get_multiplexed_async_connection_with_config(&waits).await.expect("connects");
        let (reserve, done) = (Script::new(RESERVE), Script::new(DONE));
        let sending = tokio::spawn(send_slowly(self.connection.clone()));
        let mut samples = Vec::new();
        while samples.len() < PICKED as usize {
            let () = redis::cmd("BLPOP").arg(BELL).arg(0).query_async(&mut waiting).await.expect("is rung");
            let reserved = reserve.key(KEY).arg(BATCH).arg("1900000000000").invoke_async(&mut waiting).await;
            let got: Vec<Vec<String>> = reserved.expect("reserves");
            let [ids, bodies] = &got[..] else { continue };
            samples.extend(bodies.iter().map(|sent| now() - sent.parse::<u64>().expect("a time")));
            let _: i64 = done.key(KEY).arg(ids).invoke_async(&mut waiting).await.expect("acknowledges");
        }
        sending.await.expect("no panic");
        Some(samples)
    }
}
