//! Which underlay addresses are neighbours on a link that segments below the tunnel's headers.

use std::net::IpAddr;

use ipnet::IpNet;

/// Underlay networks to which super-packets may leave whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// On-link networks of such a link.
    pub on_link: Vec<IpNet>,
    /// Networks within them that are routed otherwise.
    pub elsewhere: Vec<IpNet>,
}

impl Direct {
    /// Whether the most specific network with this address is an on-link one.
    #[must_use]
    pub fn reaches(&self, address: IpAddr) -> bool {
        let longest =
            |nets: &[IpNet]| nets.iter().filter(|net| net.contains(&address)).map(IpNet::prefix_len).max();
        longest(&self.on_link).is_some_and(|here| longest(&self.elsewhere).is_none_or(|there| there < here))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_network_decides_and_a_tie_is_no_neighbour() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let direct = Direct {
            on_link: nets(&["192.0.2.0/24", "2001:db8::/64"]),
            elsewhere: nets(&["192.0.2.64/26", "192.0.2.7/32", "2001:db8::/64", "0.0.0.0/1"]),
        };
        for (address, reached) in [
            ("192.0.2.1", true),
            ("192.0.2.7", false),
            ("192.0.2.65", false),
            ("192.0.3.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(direct.reaches(address.parse().unwrap()), reached, "{address}");
        }
        assert!(!Direct::default().reaches("192.0.2.1".parse().unwrap()));
    }
}
