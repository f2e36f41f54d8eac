//! Offloads that a kernel may refuse.

use clap::ValueEnum;

/// What a kernel refuses a daemon that [`Node::start_daemon_under`](crate::Node::start_daemon_under) starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Refusal {
    /// TCP super-packets written to a TUN device.
    Tso,
    /// UDP super-packets written to a TUN device.
    Uso,
    /// Those, and to offer them: they are news of kernel 6.2.
    UsoUnknown,
    /// Messages to be cut into datagrams, as a link without checksum offload refuses them.
    UdpSegment,
    /// Super-packets below a tunnel's headers, written to a TAP device.
    TunnelGso,
    /// To offer them: they are news of kernel 6.17.
    TunnelGsoUnknown,
}

impl Refusal {
    /// The error that the kernel gives.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::Tso | Self::Uso | Self::UsoUnknown | Self::TunnelGso | Self::TunnelGsoUnknown => {
                libc::EINVAL
            }
            Self::UdpSegment => libc::EIO,
        }
    }

    /// What is added to the daemon's log each time.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Tso => "refused a TCP super-packet",
            Self::Uso | Self::UsoUnknown => "refused a UDP super-packet",
            Self::UdpSegment => "refused to cut a message",
            Self::TunnelGso | Self::TunnelGsoUnknown => "refused a tunnelled super-packet",
        }
    }
}
