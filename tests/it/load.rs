//! Nodes under load, and with nothing to do.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use tests::load::{Load, Measured, Outcome, Work};
use tests::{Host, Lab, Node};

/// What a daemon may hold in memory, in bytes.
const MEMORY: u64 = 64 << 20;

fn daemon(node: &Node) -> i32 {
    node.status().pid.cast_signed()
}

fn load(host: &Host, server: SocketAddr, work: Work, window: Duration, watch: Vec<i32>) -> Measured {
    let warm_up = Duration::from_millis(100);
    let load = Load { server, work, warm_up, window, watch, count_syscalls: false, cpu: None };
    host.load(&load).unwrap()
}

/// Context switches are counted, not time: a loaded machine makes no difference to them.
#[test]
fn an_idle_daemon_sleeps() {
    let lab = Lab::with_nodes(2);
    let (a, b) = (lab.node(1).add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    // The workers have polled, and must stop.
    assert_eq!(a.tcp_upload(server.v4(), 20_000_000).bytes, 20_000_000);
    let watch = [1, 2].map(|number| daemon(&lab.node(number))).to_vec();
    let before = [1, 2].map(|number| lab.node(number).status().peers[0].clone());

    let usage = load(&a, server.v4(), Work::Idle, Duration::from_secs(3), watch).usage;

    for (process, peer) in usage.processes.iter().zip(before) {
        let each_second = process.switches as f64 / usage.seconds;
        assert!(each_second < 100.0, "{each_second} context switches a second: {process:?} {peer:?}");
        assert!(process.cpu / usage.seconds < 0.05, "{process:?}");
    }
}

#[test]
fn a_flood_from_one_pod_leaves_room_for_others_and_for_the_operator() {
    let lab = Lab::with_nodes(2);
    let (one, two) = (lab.node(1), lab.node(2));
    let (flooder, victim, target) = (one.add_pod("flooder"), one.add_pod("victim"), two.add_pod("target"));
    let (sink, server) = (target.serve_load().unwrap(), target.serve());
    let watch = vec![daemon(&one), daemon(&two)];
    let to = SocketAddr::new(target.v4(), sink.port);
    let flood = Work::Udp { size: 1200, per_second: 0 };
    // Buffers that are used for the first time grow once.
    load(&flooder, to, flood, Duration::from_secs(1), Vec::new());
    let memory =
        |measured: &Measured| measured.usage.processes.iter().map(|process| process.rss).max().unwrap();
    let before = memory(&load(&flooder, to, Work::Idle, Duration::from_millis(100), watch.clone()));

    let measured = thread::scope(|scope| {
        let flooding = scope.spawn(|| load(&flooder, to, flood, Duration::from_secs(4), watch));
        for _ in 0..3 {
            let bulk = victim.tcp_upload(server.v4(), 1_000_000);
            assert_eq!((bulk.bytes, &bulk.sent_sha256), (1_000_000, &bulk.received_sha256));
            assert!(one.status().ready && two.status().ready);
        }
        flooding.join().unwrap()
    });

    let Outcome::Datagrams(datagrams) = measured.outcome else { panic!("{measured:?}") };
    assert!(datagrams.received > 1000, "{datagrams:?}");
    assert_eq!(datagrams.reordered, 0, "{datagrams:?}");
    let after = memory(&measured);
    assert!(after < MEMORY && after < before + (8 << 20), "{before} bytes before, {after} after");
    // What was lost was lost to full queues.
    for node in [&one, &two] {
        let mut drops = node.status().drops;
        drops.retain(|reason, count| {
            *count > 0 && !["tun_full", "send_buffer_full"].contains(&reason.as_str())
        });
        assert!(drops.is_empty(), "{drops:?}");
    }
}
