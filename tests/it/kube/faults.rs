//! A server that answers wrongly, late or not at all: nothing is deleted, traffic goes on, the status says it in words, and it
//! recovers. The server is the real one, the harm is done by a door before it.

use tests::traffic::{ApiHarm, ApiHarms};
use tests::{ApiProxy, Node, eventually};

use super::{DEADLINE, Rig, await_in_step, await_peers, await_trouble};

/// Node-1 behind a door, with a pod that talks to one on node-2.
struct Behind {
    rig: Rig,
    door: ApiProxy,
}

impl Behind {
    fn start() -> Self {
        let rig = Rig::without_nodes(3);
        for node in rig.lab.nodes() {
            rig.plane.create_node(&node.manifest());
            node.use_kubeconfig(&rig.kubeconfig());
        }
        let door = rig.lab.node(1).api_proxy(&rig.plane.kubeconfig("admin"));
        rig.lab.node(1).start_daemon_with(&["--api-server", &door.url()]);
        rig.lab.node(2).start_daemon();
        let behind = Self { rig, door };
        await_in_step(&behind.node());
        behind
    }

    fn node(&self) -> Node {
        self.rig.lab.node(1)
    }

    /// Does harm until the words are in the status, then no more; all the while pods talk and all peers stay.
    #[track_caller]
    fn suffer(&self, harms: &[(ApiHarms, &str)]) {
        let node = self.node();
        let (near, far) = self.rig.pods();
        let server = far.serve();
        let stream = near.tcp_stream(server.v4());
        stream.wait_echoes(3);
        await_peers(&node, &["node-2", "node-3"]);
        eventually("all is set", DEADLINE, || node.status().nodes.announcement_trouble.is_none());
        let objects = node.objects();
        for (harm, words) in harms {
            self.door.harm(harm);
            await_trouble(&node, words);
            let status = node.status();
            assert!(status.ready, "{harm:?}: {:?}", status.not_ready_reasons);
            let names: Vec<&str> = status.peers.iter().map(|peer| peer.name.as_str()).collect();
            assert_eq!(names, ["node-2", "node-3"], "{harm:?}");
            let health = node.http(tests::node::ADMIN, "/healthz").unwrap();
            assert_eq!(health.status, 200, "{}", health.body);
            stream.wait_echoes(3);
            self.door.harm(&ApiHarms::default());
            await_in_step(&node);
            assert_eq!(node.objects(), objects, "{harm:?} changed the kernel");
        }
        // It has really recovered: a change arrives.
        self.rig.plane.kubectl(&["delete", "node", "node-3", "--wait=false"]);
        await_peers(&node, &["node-2"]);
        let stream = stream.stop();
        assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{stream:?}");
    }
}

fn of(lists: ApiHarm, watches: ApiHarm) -> ApiHarms {
    ApiHarms { lists, watches, others: ApiHarm::None }
}

#[test]
fn refusals_of_the_server_cost_nothing() {
    let all = |code: u16| ApiHarms::all(&ApiHarm::Status(code));
    Behind::start().suffer(&[
        (all(500), "failed (500"),
        (all(401), "does not accept the credentials"),
        (all(403), "the verbs get, list, watch on nodes"),
        (all(429), "too much to do (429)"),
    ]);
}

#[test]
fn cut_connections_cost_nothing() {
    Behind::start().suffer(&[(ApiHarms::all(&ApiHarm::Cut), "breaks off its answers")]);
}

#[test]
fn a_silent_server_costs_nothing() {
    Behind::start().suffer(&[(ApiHarms::all(&ApiHarm::Stall), "connected but silent")]);
}

#[test]
fn a_history_that_is_forgotten_is_read_anew() {
    Behind::start().suffer(&[
        (of(ApiHarm::None, ApiHarm::Gone), "forgotten our place in the history (410)"),
        (of(ApiHarm::Gone, ApiHarm::Gone), "forgotten our place in the history (410)"),
    ]);
}

#[test]
fn lists_that_lie_are_not_believed() {
    Behind::start().suffer(&[
        (of(ApiHarm::Empty, ApiHarm::GoneOnce), "is empty, but 3 are known"),
        (of(ApiHarm::Truncated, ApiHarm::GoneOnce), "breaks off its answers"),
        (of(ApiHarm::Stall, ApiHarm::GoneOnce), "the list of Nodes does not come"),
    ]);
}

/// A list that lacks most Nodes is asked for again for some seconds; one that is mended meanwhile has cost nothing.
#[test]
fn a_short_list_is_asked_for_again() {
    let behind = Behind::start();
    let node = behind.node();
    behind.door.harm(&of(ApiHarm::Short(1), ApiHarm::GoneOnce));
    await_trouble(&node, "lacks 2 of the 3 known");
    behind.door.harm(&ApiHarms::default());
    await_in_step(&node);
    await_peers(&node, &["node-2", "node-3"]);
}

#[test]
fn a_slow_server_is_waited_for() {
    let behind = Behind::start();
    let node = behind.node();
    behind.door.harm(&ApiHarms::all(&ApiHarm::Slow(2000)));
    node.restart_daemon();
    await_in_step(&node);
    let before = node.log().matches("is in trouble").count();
    behind.rig.plane.kubectl(&["delete", "node", "node-3", "--wait=false"]);
    await_peers(&node, &["node-2"]);
    assert_eq!(node.log().matches("is in trouble").count(), before, "slow is no trouble");
}

/// One watch, and no list after the first: that is all that an API server sees of a daemon.
#[test]
fn nothing_is_polled() {
    let behind = Behind::start();
    let (lists, watches) = behind.door.counts();
    assert_eq!((lists, watches), (1, 1), "{}", behind.node().log());
    for round in 0..10 {
        behind.rig.plane.kubectl(&["label", "--overwrite", "node", "node-2", &format!("round={round}")]);
    }
    // The watch ends after a minute and goes on from its place.
    eventually("the watch is renewed", DEADLINE, || behind.door.counts().1 > watches);
    assert_eq!(behind.door.counts(), (1, 2));
}
