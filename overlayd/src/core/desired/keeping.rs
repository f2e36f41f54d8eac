//! The wish while the Nodes are known from a cache: it adds, and takes nothing away from other nodes.

use super::Desired;
use super::egress::set_names;
use crate::core::plan::ruleset::{Family, union};
use crate::core::plan::{Actual, Route, Via};

impl Desired {
    /// The same wish, with all that the kernel holds for other nodes: a peer that joined after the cache was written
    /// keeps its routes, and its pods are not masqueraded.
    #[must_use]
    pub fn keeping(mut self, have: &Actual) -> Self {
        let tun = have.device.as_ref().map(|device| Via::Link(device.index));
        let leads_to_peers = |route: &&Route| route.via == Via::Unreachable || Some(route.via) == tun;
        // Ordered by key, as the set is.
        let wanted: Vec<_> = self.routes.iter().map(Route::key).collect();
        let is_new = |route: &&Route| wanted.binary_search(&route.key()).is_err();
        self.routes.extend(have.routes.iter().filter(leads_to_peers).filter(is_new).cloned());
        self.addresses.extend(have.device_addresses.iter().copied());
        let Some(table) = &have.table else { return self };
        for set in &mut self.table.sets {
            if set.name != set_names(set.family).bypass {
                set.ranges = union(set.family, &set.ranges, table.ranges(&set.name));
            }
        }
        let exempt = [Family::V4, Family::V6].into_iter().flat_map(|family| {
            union(family, &self.bare_flow_exempt, table.ranges(set_names(family).cluster))
        });
        self.bare_flow_exempt = exempt.collect();
        self
    }
}
