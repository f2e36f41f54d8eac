//! Why a packet was dropped.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $meaning:literal;)*) => {
        /// Why a packet was dropped. Closed: every dropped packet increments exactly one of these.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Name in metrics and status: snake_case.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// One sentence for an operator: what it means and what to look at.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Egress: no peer has this destination.
    NoPeer = "no_peer",
        "no known node owns the destination address: is its Node object there and not refused?";
    /// Egress: the frame is not an IP packet.
    EgressNotIp = "egress_not_ip",
        "the kernel routed something into the tunnel that is neither IPv4 nor IPv6";
    /// Egress: lengths or offload header contradict each other.
    EgressMalformed = "egress_malformed",
        "a packet to be sent has headers that contradict its length";
    /// Egress: the packet does not fit a datagram.
    EgressTooBig = "egress_too_big",
        "a packet to be sent does not fit a UDP datagram: the tunnel device's MTU is far too large";
    /// Egress: multicast or broadcast, which the overlay does not carry.
    EgressNotUnicast = "egress_not_unicast",
        "multicast and broadcast are not carried; a few from the node itself are normal";
    /// Egress: the destination is in our own pod CIDRs.
    EgressOwnDestination = "egress_own_destination",
        "a packet for a pod of this node came to the tunnel: the pod is gone or its route is missing";
    /// Egress: a packet of the tunnel would enter the tunnel.
    EgressVxlanInVxlan = "egress_vxlan_in_vxlan",
        "a tunnel packet was routed into the tunnel: does a pod CIDR cover the nodes' addresses?";
    /// Ingress: too short for the headers.
    Truncated = "truncated",
        "a datagram on the tunnel port is too short to be VXLAN: something else sends there";
    /// Ingress: flags or reserved bits are not those of plain VXLAN.
    BadFlags = "bad_flags",
        "a datagram on the tunnel port is not plain VXLAN: another protocol, or an extension (GBP, GPE) is on at the sender";
    /// Ingress: another VNI.
    WrongVni = "wrong_vni",
        "VXLAN with another VNI: all nodes must agree on it";
    /// Ingress: the outer source is not a peer.
    UnknownSource = "unknown_source",
        "the sender is no known node: its Node object is missing or refused, or it sends from another address than it announces";
    /// Ingress: the inner Ethernet destination is multicast or broadcast.
    InnerBroadcast = "inner_broadcast",
        "a broadcast or multicast frame (ARP, neighbour discovery): a peer floods instead of using static entries";
    /// Ingress: the inner Ethernet destination is another machine's.
    NotOurMac = "not_our_mac",
        "the inner Ethernet address is not ours: the peer holds old data of this node, and corrects itself soon";
    /// Ingress: the inner frame is not IPv4 or IPv6.
    NotIp = "not_ip",
        "the inner frame is neither IPv4 nor IPv6";
    /// Ingress: inner lengths contradict each other.
    MalformedInner = "malformed_inner",
        "the inner packet's headers contradict its length: truncated on the way or a faulty sender";
    /// Ingress: the inner source is not behind that peer.
    SpoofedSource = "spoofed_source",
        "the inner source address does not belong to the node that sent it: spoofing, or traffic that the sender failed to masquerade";
    /// Ingress: the inner destination is multicast or broadcast.
    NotUnicast = "not_unicast",
        "the inner destination is multicast or broadcast, which the overlay does not carry";
    /// Ingress: a packet of the tunnel inside the tunnel.
    VxlanInVxlan = "vxlan_in_vxlan",
        "a tunnel packet inside the tunnel, addressed to this node: a loop or an attempt to get round the source check";
    /// Ingress: the inner destination is not ours.
    NotOurs = "not_ours",
        "the inner destination is not in this node's pod CIDRs: the peer holds old data of this node";
    /// Ingress: congestion was marked on a packet that cannot carry the mark (RFC 6040, section 4.2).
    EcnNotCapable = "ecn_not_capable",
        "a router marked congestion on a tunnel packet whose inner packet cannot carry the mark: dropping is the signal";
    /// The shell received only a part of a datagram.
    ReceiveTruncated = "receive_truncated",
        "a received datagram did not fit the buffer";
    /// The socket's buffer is full.
    SendBufferFull = "send_buffer_full",
        "the uplink is slower than what is sent: the socket's buffer is full";
    /// The kernel could not send: no route, unreachable, refused.
    SendFailed = "send_failed",
        "the kernel could not send to the peer: look at the route to its underlay address and at local firewalls";
    /// The datagram exceeds the path's MTU.
    SendTooBig = "send_too_big",
        "a datagram exceeds the path's MTU and could not go out in fragments either";
    /// The TUN device could not take the packet now.
    TunFull = "tun_full",
        "the kernel had no memory or no room for a packet that arrived";
    /// The TUN device did not take the packet.
    TunWriteFailed = "tun_write_failed",
        "the tunnel device refused a packet that arrived: is it up, and has the node memory left?";
}
