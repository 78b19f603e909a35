//! No statement that workers wait for may look at more rows than it needs, however long the backlog is.

use rusqlite::Connection;

use super::many::Many;

fn plan(sql: &str) -> String {
    let db = Connection::open_in_memory().unwrap();
    for step in [include_str!("../sql/v1.sql"), include_str!("../sql/v2.sql"), include_str!("../sql/v3.sql")] {
        db.execute_batch(step).unwrap();
    }
    let sql = if sql.contains('[') { Many::text(sql, 32) } else { sql.to_owned() };
    let mut explain = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let parameters = vec![1_i64; explain.parameter_count()];
    let rows = explain.query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, String>(3)).unwrap();
    rows.map(|row| row.unwrap()).collect::<Vec<_>>().join("; ")
}

#[test]
fn no_statement_of_workers_scans_or_sorts() {
    let statements = [
        include_str!("../sql/send.sql"),
        include_str!("../sql/send_later.sql"),
        include_str!("../sql/next_seq.sql"),
        include_str!("../sql/claim_find.sql"),
        include_str!("../sql/claim_take.sql"),
        include_str!("../sql/has_ready.sql"),
        include_str!("../sql/promote.sql"),
        include_str!("../sql/delayed_due.sql"),
        include_str!("../sql/lease_due.sql"),
        include_str!("../sql/lease_ended.sql"),
        include_str!("../sql/expire.sql"),
        include_str!("../sql/done.sql"),
        include_str!("../sql/release.sql"),
        include_str!("../sql/retry.sql"),
        include_str!("../sql/hold.sql"),
        include_str!("../sql/touch.sql"),
        include_str!("../sql/give_back.sql"),
        include_str!("../sql/first_above.sql"),
        include_str!("../sql/info.sql"),
        include_str!("../sql/kick.sql"),
        include_str!("../sql/kick_id.sql"),
        include_str!("../sql/is_there.sql"),
        include_str!("../sql/has_id.sql"),
        include_str!("../sql/set_id.sql"),
        include_str!("../sql/queue_and_due.sql"),
        include_str!("../sql/set_next_seq.sql"),
        include_str!("../sql/new_queue.sql"),
        include_str!("../sql/find_queue.sql"),
        include_str!("../sql/paused_until.sql"),
        include_str!("../sql/lease_delete.sql"),
        include_str!("../sql/lease_look.sql"),
        include_str!("../sql/lease_keep.sql"),
        include_str!("../sql/leases.sql"),
        include_str!("../sql/lease_new.sql"),
        include_str!("../sql/oldest.sql"),
        include_str!("../sql/find_id.sql"),
        include_str!("../sql/delete.sql"),
        include_str!("../sql/delete_below.sql"),
        include_str!("../sql/pause.sql"),
    ];
    for sql in statements {
        // The rows of a `VALUES` are no table; `numbering` has one row.
        let plan =
            plan(sql).replace("SCAN 32-ROW VALUES CLAUSE", "").replace("SCAN CONSTANT ROW", "").replace("SCAN numbering", "");
        assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
    }
}

#[test]
fn each_listing_follows_its_index() {
    for (sql, index) in [
        (include_str!("../sql/claim_find.sql"), "USING INDEX ready (queue=? AND priority>? AND priority<?)"),
        (include_str!("../sql/delayed_due.sql"), "USING COVERING INDEX delayed (queue=?)"),
        (include_str!("../sql/kick.sql"), "USING COVERING INDEX held (queue=? AND due<?)"),
        (include_str!("../sql/lease_due.sql"), "USING COVERING INDEX lease_due (queue=?)"),
        ("SELECT count(*) FROM task WHERE queue = ?1 AND state = 5", "USING COVERING INDEX held (queue=?)"),
    ] {
        let plan = plan(sql);
        assert!(plan.contains(index), "{sql}: {plan}");
    }
}
