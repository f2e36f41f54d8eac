//! Offloads that a kernel may refuse at run time, though it offered them.

use clap::ValueEnum;

/// What a kernel refuses a daemon that [`Node::start_daemon_under`](crate::Node::start_daemon_under) starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Refusal {
    /// TCP super-packets written to a TUN device.
    Tso,
    /// UDP super-packets written to a TUN device, which kernels before 6.2 know nothing of.
    Uso,
    /// Messages to be cut into datagrams, as a link without checksum offload refuses them.
    UdpSegment,
}

impl Refusal {
    /// The error that the kernel gives.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::Tso | Self::Uso => libc::EINVAL,
            Self::UdpSegment => libc::EIO,
        }
    }

    /// What is added to the daemon's log each time.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Tso => "refused a TCP super-packet",
            Self::Uso => "refused a UDP super-packet",
            Self::UdpSegment => "refused to cut a message",
        }
    }
}
