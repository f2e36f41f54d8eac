//! The hash that chooses the outer source port.

use std::net::IpAddr;

use super::{Fragment, Inner};

/// Odd constants with about as many ones as zeros: fractions of the golden ratio and of the square root of two.
const K0: u64 = 0x9e37_79b9_7f4a_7c15;
const K1: u64 = 0x6a09_e667_f3bc_c909;

/// Mixes two words by folding their 128-bit product. Not for adversaries: an adversary who wants one port can
/// as well use one flow.
#[must_use]
#[inline]
pub const fn mix(a: u64, b: u64) -> u64 {
    let product = (a ^ K0) as u128 * (b ^ K1) as u128;
    (product as u64) ^ (product >> 64) as u64
}

impl Inner {
    /// Hash of addresses, protocol and ports; of a fragment, even the first, without ports, so that all
    /// fragments of a packet take one way.
    #[must_use]
    pub fn flow_hash(&self) -> u64 {
        let ports = match (self.fragment, self.ports) {
            (Fragment::Whole, Some((source, destination))) => {
                u64::from(source) << 16 | u64::from(destination)
            }
            _ => 0,
        };
        let rest = u64::from(self.protocol) << 32 | ports;
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits())
            }
            (source, destination) => mix(fold_address(source), fold_address(destination)),
        };
        mix(mix(addresses, rest), rest.rotate_left(32) ^ K0)
    }
}

#[inline]
fn fold_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            mix(bits as u64, (bits >> 64) as u64)
        }
    }
}
