//! Bounds of what one session may ask of a hub: just inside, and one more.

mod hub_net;

use hub_net::{Net, key, resumable};
use paceline_proto::{
    limits::{CHUNK_ITEMS, INTEREST_MAX, KEY_MAX},
    message::ToHub,
};

#[test]
fn a_session_may_subscribe_to_so_many_keys_and_not_to_one_more() {
    let mut net = Net::group(resumable(), 3);
    // It is subscribed to `k` already.
    for chunk in 0..INTEREST_MAX / CHUNK_ITEMS {
        let first = usize::from(chunk == 0);
        let keys = (first..CHUNK_ITEMS).map(|n| key(&format!("{chunk}/{n}"))).collect();
        net.send_up(3, ToHub::Subscribe { keys, streams: vec![] });
        net.flow();
    }
    assert_eq!(net.count("peer_refused"), 0);
    net.send_up(3, ToHub::Subscribe { keys: vec![key("one more")], streams: vec![] });
    net.step_up(3, 1);
    let (link, why) = net.unlinked.last().expect("dropped").clone();
    assert_eq!(Some(link), net.nodes[&3].link);
    assert!(why.contains("more subscriptions"), "{why}");
    assert_eq!(net.count("peer_refused"), 1);
}

#[test]
fn a_key_and_a_chunk_at_their_bounds_are_taken() {
    let mut net = Net::group(resumable(), 3);
    let longest = paceline_proto::id::Key(vec![b'k'; KEY_MAX].into());
    net.send_up(3, ToHub::Subscribe { keys: vec![longest], streams: vec![] });
    net.send_up(3, ToHub::Subscribe { keys: vec![key("k"); CHUNK_ITEMS], streams: vec![] });
    net.flow();
    assert_eq!(net.count("peer_refused"), 0);
}
