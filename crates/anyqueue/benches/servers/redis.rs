//! The least for at-least-once on Redis: bodies in a hash, a sorted set of what is ready and one of what is in flight,
//! three scripts. A script per send, all on one connection; reserves and acknowledgements 32 at a time in one pipeline.

use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{Script, pipe};

use crate::load::{Payload, Raw, SENDERS, SLOTS, rate, text};

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

pub(crate) struct RawRedis(pub(crate) MultiplexedConnection);

impl RawRedis {
    async fn send(&self, senders: usize, tasks: usize) -> f64 {
        let (start, each) = (Instant::now(), tasks / senders);
        let sending = (0..senders).map(|_| {
            let mut connection = self.0.clone();
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
        work(self.0.clone()).await;
        rate
    }

    async fn many(&mut self, tasks: usize) -> [f64; 2] {
        let sent = self.send(SENDERS, tasks).await;
        let start = Instant::now();
        let workers: Vec<_> = (0..SLOTS / BATCH).map(|_| tokio::spawn(work(self.0.clone()))).collect();
        let mut count = 0;
        for worker in workers {
            count += worker.await.expect("no panic");
        }
        [sent, rate(count, start.elapsed())]
    }
}
