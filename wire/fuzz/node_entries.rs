//! As `entries.rs`, for what `overlayd::core` reads: the crate `wire` cannot replay these itself.

use overlayd::core::cluster::{Book, NodeEvent};
use overlayd::core::config::{Config, MachineFacts, RawConfig};
use overlayd::core::node::{emit_nodes, parse_nodes};

/// A file of Nodes. What is read is written and read back the same, and folds into a cluster, at once or one by one.
pub(super) fn node_text(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(nodes) = parse_nodes(text) else { return };
    assert_eq!(parse_nodes(&emit_nodes(&nodes)), Ok(nodes.clone()), "Nodes changed in writing");
    let name = nodes.first().map_or("own", |node| &node.name);
    let flags = |prefix: &str| RawConfig {
        values: [("node_name", name), ("annotation_prefix", prefix)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    };
    let machine = MachineFacts { hostname: "own".into(), cpus: 1, memory: 0 };
    for prefix in ["overlayd.io", "flannel.alpha.coreos.com"] {
        // A Node of the file may have a name that no machine can.
        let Ok(config) = Config::resolve(None, &[].into(), &flags(prefix), &machine) else { continue };
        let mut book = Book::default();
        book.apply(NodeEvent::Listed(nodes.clone()));
        let _ = book.derive(&config);
        let cluster = book.cluster();
        assert_eq!(cluster.own.is_none(), cluster.own_problem.is_some(), "either ours or a reason");
        let mut one_by_one = Book::default();
        let applied = nodes.iter().map(|node| NodeEvent::Applied(Box::new(node.clone())));
        for event in std::iter::once(NodeEvent::Listed(Vec::new())).chain(applied) {
            one_by_one.apply(event);
            let _ = one_by_one.derive(&config);
        }
        assert_eq!(one_by_one.cluster(), cluster, "the order of events made a difference");
    }
}
