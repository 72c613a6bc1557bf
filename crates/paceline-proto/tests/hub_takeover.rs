//! A new owner: nobody misses, repeats or reorders an event, whoever heard what before the old owner died.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use hub_net::*;
use paceline_proto::{id::*, message::*};

fn all(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

#[test]
fn everybody_hears_every_event_across_a_takeover() {
    let mut net = Net::group(resumable(), 4);
    net.publish_events(5);
    net.flow();
    net.kill_owner();
    net.publish_events(3);
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.publish_events(2);
    net.rest();
    for id in 2..=4 {
        assert_eq!(net.delivered_from(id, 1), all(1, 10), "session {id}");
    }
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(5))));
}
