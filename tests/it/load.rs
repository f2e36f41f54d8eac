//! Nodes under load, in a large cluster, and with nothing to do.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use overlayd::core::status::Status;
use tests::kubernetes::ControlPlane;
use tests::load::{Load, Measured, Outcome, Work};
use tests::{Families, Host, Lab, Node, Pod, eventually, packet};

/// What a daemon may hold in memory, in bytes.
const MEMORY: u64 = 64 << 20;

/// The share of a CPU that a daemon may take when nobody wants anything.
const IDLE: f64 = 0.002;

/// How often its threads may be woken up in a second then.
const WAKES: f64 = 20.0;

fn daemon(node: &Node) -> i32 {
    node.status().pid.cast_signed()
}

/// The first status that satisfies the condition. A daemon that knows thousands of Nodes, not optimised and on a busy machine, may now and
/// then not answer in time.
#[track_caller]
fn status_with(node: &Node, what: &str, condition: impl Fn(&Status) -> bool) -> Status {
    let mut last = None;
    eventually(&format!("the status has {what}"), Duration::from_secs(120), || {
        last = node.try_status().ok().filter(&condition);
        last.is_some()
    });
    last.unwrap()
}

/// Bytes of memory without the program's own file, which is larger here than the one that is shipped.
fn own_memory(node: &Node, pid: i32) -> u64 {
    let text = node.read_file(&format!("/proc/{pid}/status"));
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn load(host: &Host, server: SocketAddr, work: Work, window: Duration, watch: Vec<i32>) -> Measured {
    let warm_up = Duration::from_millis(100);
    let load = Load { server, work, warm_up, window, watch, count_syscalls: false, cpu: None };
    host.load(&load).unwrap()
}

/// Processor time is the process's own clock and wake-ups are counted. What else the machine does can only add to them, so one quiet stretch
/// of three is proof.
#[test]
fn an_idle_daemon_sleeps() {
    let lab = Lab::with_nodes(2);
    let (a, b) = (lab.node(1).add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    // The workers have polled, and must stop.
    assert_eq!(a.tcp_upload(server.v4(), 20_000_000).bytes, 20_000_000);
    let watch = [1, 2].map(|number| daemon(&lab.node(number))).to_vec();

    let mut seen = Vec::new();
    let quiet = (0..3).any(|_| {
        let usage = load(&a, server.v4(), Work::Idle, Duration::from_secs(10), watch.clone()).usage;
        let costs = usage
            .processes
            .iter()
            .map(|process| (process.cpu / usage.seconds, process.switches as f64 / usage.seconds));
        seen.extend(costs.clone());
        costs.into_iter().all(|(share, wakes)| share < IDLE && wakes < WAKES)
    });

    assert!(quiet, "shares of a CPU, and context switches a second: {seen:?}");
}

/// What was lost was lost to full queues, but for what is said to be `harm`.
#[track_caller]
fn assert_only_full_queues(node: &Node, harm: &str) {
    let mut drops = node.status().drops;
    drops.retain(|reason, count| {
        *count > 0 && !["tun_full", "send_buffer_full", harm].contains(&reason.as_str())
    });
    assert!(drops.is_empty(), "{drops:?}");
}

/// A pod that floods another, as fast as it goes.
struct Flooder {
    from: Pod,
    to: SocketAddr,
    watch: Vec<i32>,
    /// Bytes of memory of the largest daemon before.
    before: u64,
}

impl Flooder {
    const WORK: Work = Work::Udp { size: 1200, per_second: 0 };

    fn new(from: Pod, to: SocketAddr, watched: &[&Node]) -> Self {
        let watch: Vec<i32> = watched.iter().map(|node| daemon(node)).collect();
        // Buffers that are used for the first time grow once.
        load(&from, to, Self::WORK, Duration::from_secs(1), Vec::new());
        let before = largest(&load(&from, to, Work::Idle, Duration::from_millis(100), watch.clone()));
        Self { from, to, watch, before }
    }

    /// Floods for a while. Much arrives, in order, and no daemon grows.
    #[track_caller]
    fn flood(&self) {
        let measured = load(&self.from, self.to, Self::WORK, Duration::from_secs(4), self.watch.clone());
        let after = largest(&measured);
        let Outcome::Datagrams(datagrams) = measured.outcome else { panic!("{measured:?}") };
        assert!(datagrams.received > 1000, "{datagrams:?}");
        assert_eq!(datagrams.reordered, 0, "{datagrams:?}");
        assert!(
            after < MEMORY && after < self.before + (8 << 20),
            "{} bytes before, {after} after",
            self.before
        );
    }
}

/// Bytes of memory of the largest daemon.
fn largest(measured: &Measured) -> u64 {
    measured.usage.processes.iter().map(|process| process.rss).max().unwrap()
}

#[track_caller]
fn moves_a_megabyte(client: &Host, server: SocketAddr) {
    let bulk = client.tcp_upload(server, 1_000_000);
    assert_eq!((bulk.bytes, &bulk.sent_sha256), (1_000_000, &bulk.received_sha256));
}

#[test]
fn a_flood_from_one_pod_leaves_room_for_others_and_for_the_operator() {
    let lab = Lab::with_nodes(2);
    let (one, two) = (lab.node(1), lab.node(2));
    let (victim, target) = (one.add_pod("victim"), two.add_pod("target"));
    let (sink, server) = (target.serve_load().unwrap(), target.serve());
    let to = SocketAddr::new(target.v4(), sink.port);
    let flooder = Flooder::new(one.add_pod("flooder"), to, &[&one, &two]);

    thread::scope(|scope| {
        let flooding = scope.spawn(|| flooder.flood());
        for _ in 0..3 {
            moves_a_megabyte(&victim, server.v4());
            assert!(one.status().ready && two.status().ready);
        }
        flooding.join().unwrap();
    });

    for node in [&one, &two] {
        assert_only_full_queues(node, "");
    }
}

/// The peer floods a pod, and the node itself with what is no tunnel traffic.
#[test]
fn a_flood_from_one_peer_leaves_room_for_other_peers_and_for_new_pods() {
    const STRAY: usize = 5000;
    let lab = Lab::with_nodes(3);
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let (victim, target) = (two.add_pod("victim"), one.add_pod("target"));
    let (sink, server) = (target.serve_load().unwrap(), target.serve());
    let to = SocketAddr::new(target.v4(), sink.port);
    let flooder = Flooder::new(three.add_pod("flooder"), to, &[&one]);
    // No flag says that this is VXLAN.
    let stray = packet::udp(SocketAddr::new(three.v4(), 40_000), SocketAddr::new(one.v4(), 8472), &[0; 64]);
    let stray = vec![stray; STRAY];

    thread::scope(|scope| {
        let flooding = scope.spawn(|| flooder.flood());
        let straying = scope.spawn(|| three.inject_all(&stray));
        for round in 0..3 {
            moves_a_megabyte(&victim, server.v4());
            assert!(one.status().ready);
            let pod = one.add_pod(&format!("late-{round}"));
            moves_a_megabyte(&victim, pod.serve().v4());
        }
        straying.join().unwrap();
        flooding.join().unwrap();
    });

    let counted = one.drops("bad_flags");
    // Of a full socket buffer the kernel keeps count.
    assert!(counted > 0 && counted <= STRAY as u64, "{counted}");
    assert_only_full_queues(&one, "bad_flags");
    for node in [&two, &three] {
        assert_only_full_queues(node, "");
    }
}

/// Every change of a Node is a new table, unless a slow machine takes some together.
#[test]
fn a_table_of_five_thousand_nodes_changes_under_load_without_loss() {
    const NODES: usize = 5000;
    const CHANGES_PER_SECOND: u32 = 30;
    const SECONDS: u32 = 10;
    /// So many even where nothing runs when it should.
    const SWAPS: u64 = 30;
    let lab = Lab::builder().nodes(2).pods(Families::Dual).underlay(Families::Dual);
    let lab = lab.deadline(Duration::from_secs(400)).start();
    let plane = ControlPlane::builder(&lab).without_controllers().start();
    let (one, two) = (lab.node(1), lab.node(2));
    for node in [&one, &two] {
        plane.create_node(&node.manifest());
    }
    let door = plane.host().api_proxy(&plane.kubeconfig("admin"));
    door.fill(NODES);
    one.use_kubeconfig(&plane.kubeconfig("admin"));
    lab.start_daemons();
    let (near, far) = (one.add_pod("near"), two.add_pod("far"));
    let (sink, near_server, far_server) = (far.serve_load().unwrap(), near.serve(), far.serve());
    let before = status_with(&one, "all Nodes as peers, and their routes", |status| {
        status.peers.len() == NODES + 1 && status.reconcile.changes as usize > 2 * NODES
    });

    let to = SocketAddr::new(far.v4(), sink.port);
    let pid = before.pid.cast_signed();
    let memory = own_memory(&one, pid);
    let work = Work::Udp { size: 200, per_second: 2000 };
    let measured = thread::scope(|scope| {
        let paced = scope.spawn(|| load(&near, to, work, Duration::from_secs(SECONDS.into()), Vec::new()));
        let changing = scope.spawn(|| door.churn(NODES, CHANGES_PER_SECOND, SECONDS, true));
        let mut moved = 0;
        while !changing.is_finished() || moved == 0 {
            for (client, server) in [(&near, far_server.v4()), (&far, near_server.v6())] {
                let bulk = client.tcp_upload(server, 20_000_000);
                assert_eq!((bulk.bytes, &bulk.sent_sha256), (20_000_000, &bulk.received_sha256));
                moved += bulk.bytes;
            }
        }
        changing.join().unwrap();
        paced.join().unwrap()
    });

    let Outcome::Datagrams(datagrams) = measured.outcome else { panic!("{measured:?}") };
    let after = status_with(&one, "many new tables", |now| now.table.swaps > before.table.swaps + SWAPS);
    let told = format!("{datagrams:?} {:?} {:?}", after.drops, two.status().drops);
    assert_eq!((datagrams.received, datagrams.reordered), (datagrams.sent, 0), "{told}");
    let grown = own_memory(&one, pid);
    assert!(grown < MEMORY && grown < memory + (16 << 20), "{memory} bytes before, {grown} after");
}
