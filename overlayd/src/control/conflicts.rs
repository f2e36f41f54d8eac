//! What others own and stands in our way: gathered from all sides, told once.

use super::Control;
use crate::core::leases::Leases;
use crate::core::notice::Reason;
use crate::core::plan::Conflict;

impl Control {
    /// All conflicts, for the status.
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        let mut all = self.obstacles();
        let strays = self.strays();
        if !strays.is_empty() {
            all.push(Conflict {
                object: format!("pods with addresses outside this Node's pod CIDRs: {}", strays.join(", ")),
                remedy:
                    "delete these pods: the Node was made anew with other CIDRs, and only this node reaches them"
                        .to_owned(),
            });
        }
        all
    }

    /// Logs and announces the obstacles that are new.
    pub(super) fn tell_conflicts(&mut self) {
        let found = self.obstacles();
        let new: Vec<Conflict> =
            found.iter().filter(|conflict| !self.told_conflicts.contains(conflict)).cloned().collect();
        self.told_conflicts = found;
        for Conflict { object, remedy } in new {
            tracing::warn!(%object, %remedy, "a foreign object stands in our way");
            self.tell(Reason::ForeignObject, format!("{object} stands in our way; remedy: {remedy}"));
        }
    }

    /// Those that nothing else tells of.
    fn obstacles(&self) -> Vec<Conflict> {
        let foreign = self.reconciler.conflicts().iter().cloned();
        let doubled = self.leases.iter().flat_map(Leases::conflicts).map(|conflict| Conflict {
            object: format!("pod address {} of the veths {}", conflict.address, conflict.veths.join(" and ")),
            remedy: "delete the pods behind all of these veths but one".to_owned(),
        });
        foreign.chain(doubled).chain(self.conflist.conflicts()).collect()
    }
}
