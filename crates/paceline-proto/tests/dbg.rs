mod hub_net;
use hub_net::*;
use std::time::Duration;
#[test]
fn dbg() {
    let mut net = Net::group(unresumable(true), 4);
    net.publish_event();
    net.rest();
    net.publish_event();
    net.publish_event();
    net.node(2).deaf = true;
    net.pass(Duration::ZERO);
    net.publish_event();
    net.flow();
    for id in 1..=4 {
        println!(
            "{id} {:?} {:?} {:?} {:?}",
            net.delivered(id),
            net.nodes[&id].follower.covered().collect::<Vec<_>>(),
            net.nodes[&id].follower.is_complete(),
            net.nodes[&id].follower.carry().rings
        );
    }
    net.kill_owner();
    net.effects.clear();
    net.batches.clear();
    net.take_over(4);
    net.join_all();
    net.rest();
    net.find_dead();
    net.rest();
    for e in &net.effects {
        println!("{e:?}");
    }
    for e in &net.batches {
        println!("{e:?}");
    }
    for id in 2..=4 {
        println!(
            "{id} {:?} {:?} {:?}",
            net.delivered(id),
            net.nodes[&id].follower.covered().collect::<Vec<_>>(),
            net.nodes[&id].follower.carry().rings
        );
    }
}
