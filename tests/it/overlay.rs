//! The main job: pods talk, on one node and across nodes, and see each other's addresses.

use tests::Lab;

#[test]
fn pods_on_one_node_talk_and_see_each_others_addresses() {
    let lab = Lab::with_nodes(1);
    let (a, b) = (lab.node(1).add_pod("a"), lab.node(1).add_pod("b"));
    let server = b.serve();
    assert_eq!(a.tcp_source(server.v4()), a.v4());
    assert_eq!(a.udp_source(server.v4()), a.v4());
    assert_eq!(a.ping(b.v4(), 64, 2).answered, 2);
}

#[test]
fn pods_on_two_nodes_talk_and_see_each_others_addresses() {
    let lab = Lab::with_nodes(2);
    let (a, b) = (lab.node(1).add_pod("a"), lab.node(2).add_pod("b"));
    for (client, server) in [(&a, &b), (&b, &a)] {
        let serving = server.serve();
        assert_eq!(client.tcp_source(serving.v4()), client.v4());
        assert_eq!(client.udp_source(serving.v4()), client.v4());
        assert_eq!(client.ping(server.v4(), 64, 2).answered, 2);
    }
}

#[test]
fn many_bytes_cross_the_overlay_as_they_were_sent() {
    let lab = Lab::with_nodes(2);
    let (a, b) = (lab.node(1).add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    for bulk in [a.tcp_upload(server.v4(), 100_000_000), a.tcp_download(server.v4(), 100_000_000)] {
        assert_eq!(bulk.bytes, 100_000_000);
        assert_eq!(bulk.sent_sha256, bulk.received_sha256);
    }
}
