//! The network configuration that container runtimes read: what the file holds, and which file of a directory they take.
//!
//! Its presence tells a runtime that pods can be started, so who writes it must be able to serve them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Name of our file. Of all files in the directory a runtime takes the first one in lexical order.
pub const FILE_NAME: &str = "10-overlay.conflist";

/// Name of the network. Runtimes file their attachments under it: another name would orphan those that exist.
pub const NETWORK: &str = "overlay";

/// File name of the plugin in the runtime's directory of plugins.
pub const PLUGIN: &str = "overlayd";

/// The plugin that runtimes call for the pod's loopback device (containerd before 2.0).
pub const LOOPBACK: &str = "loopback";

/// The plugins that follow ours where the node has them, each with the capability that it takes.
pub const CHAINED: [(&str, &str); 2] = [("portmap", "portMappings"), ("bandwidth", "bandwidth")];

/// What a runtime takes for a network configuration, by the end of a file's name (`libcni`).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What decides about the contents of our file.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// `cniVersion`: every plugin of the chain must know it.
    pub version: &'a str,
    /// Where the daemon listens; `None` for the place where the plugin looks by itself.
    pub socket: Option<&'a Path>,
    /// File names in the runtime's directory of plugins.
    pub plugins: &'a [String],
}

/// The contents of our file.
#[must_use]
pub fn render(wish: Wish<'_>) -> String {
    let mut ours = json!({"type": PLUGIN});
    if let Some(socket) = wish.socket {
        ours["socket"] = socket.to_string_lossy().into();
    }
    let follow = CHAINED
        .iter()
        .filter(|(name, _)| is_among(wish.plugins, name))
        .map(|(name, capability)| json!({"type": name, "capabilities": {*capability: true}}));
    let plugins: Vec<Value> = std::iter::once(ours).chain(follow).collect();
    let whole = json!({"cniVersion": wish.version, "name": NETWORK, "plugins": plugins});
    format!("{whole:#}\n")
}

/// Those of the optional plugins that are (`true`) or are not (`false`) among `plugins`.
#[must_use]
pub fn chained(plugins: &[String], there: bool) -> Vec<String> {
    let names = CHAINED.iter().map(|(name, _)| *name);
    names.filter(|name| is_among(plugins, name) == there).map(str::to_owned).collect()
}

/// Whether a plugin of this name is among `plugins`.
#[must_use]
pub fn is_among(plugins: &[String], name: &str) -> bool {
    plugins.iter().any(|plugin| plugin == name)
}

/// Of the `files` in the directory those that a runtime takes rather than ours, in its order.
#[must_use]
pub fn ahead(files: &[String]) -> Vec<String> {
    let is_configuration =
        |name: &&String| name.rsplit_once('.').is_some_and(|(_, end)| EXTENSIONS.contains(&end));
    let mut ahead: Vec<String> =
        files.iter().filter(is_configuration).filter(|name| name.as_str() < FILE_NAME).cloned().collect();
    ahead.sort();
    ahead
}

/// How our file does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflistStatus {
    /// Its path.
    pub file: String,
    /// Whether it stands there with the right contents.
    pub written: bool,
    /// The optional plugins that it chains.
    pub chained: Vec<String>,
    /// Plugins that the runtime's directory lacks, each with what pods cannot have without it.
    pub missing: Vec<String>,
    /// Paths of files that runtimes take instead.
    pub ahead: Vec<String>,
    /// Why it cannot be written, or would not work.
    pub trouble: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn written(plugins: &[&str], socket: Option<&Path>) -> Value {
        let plugins = names(plugins);
        serde_json::from_str(&render(Wish { version: "1.0.0", socket, plugins: &plugins })).unwrap()
    }

    #[test]
    fn alone_it_is_our_plugin_and_nothing_else() {
        let expected = json!({"cniVersion": "1.0.0", "name": "overlay", "plugins": [{"type": "overlayd"}]});
        assert_eq!(written(&["overlayd", "loopback", "portmap.old"], None), expected);
    }

    #[test]
    fn what_is_there_is_chained_behind_ours_in_a_fixed_order() {
        let whole = written(&["bandwidth", "portmap"], Some(Path::new("/run/x/cni.sock")));
        let expected = json!([
            {"type": "overlayd", "socket": "/run/x/cni.sock"},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ]);
        assert_eq!(whole["plugins"], expected);
        assert_eq!(written(&["bandwidth"], None)["plugins"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn chained_and_missing_are_two_halves() {
        let plugins = names(&["portmap", "ptp"]);
        assert_eq!(
            (chained(&plugins, true), chained(&plugins, false)),
            (names(&["portmap"]), names(&["bandwidth"]))
        );
    }

    #[test]
    fn only_configurations_that_sort_first_are_ahead() {
        let files = names(&[
            "87-podman.conflist",
            "05-cilium.conflist",
            "10-flannel.conflist",
            "00-old.conf.bak",
            "00-readme",
            "1.json",
            "10-overlay.conflist",
            "100-crio-bridge.conflist",
            ".conf",
        ]);
        // '-' sorts before '.', and both before digits.
        let expected = [".conf", "05-cilium.conflist", "1.json", "10-flannel.conflist"];
        assert_eq!(ahead(&files), names(&expected));
    }

    proptest! {
        #[test]
        fn the_network_is_the_same_whatever_plugins_there_are(plugins in prop::collection::vec("[a-z]{1,12}", 0..6)) {
            let text = render(Wish { version: "1.1.0", socket: None, plugins: &plugins });
            let whole: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&whole["name"], NETWORK);
            prop_assert_eq!(&whole["plugins"][0]["type"], PLUGIN);
        }
    }
}
