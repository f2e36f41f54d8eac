//! The verdict on each packet: encapsulation on egress, the checks and decapsulation on ingress.

/// Why a packet was dropped. Closed: every dropped packet increments exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// Egress: no peer has this destination.
    NoPeer,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: &'static [Self] = &[Self::NoPeer];

    /// Name in metrics and status: snake_case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoPeer => "no_peer",
        }
    }

    /// One sentence for an operator: what it means and what to look at.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::NoPeer => "no known node owns the destination address",
        }
    }
}
