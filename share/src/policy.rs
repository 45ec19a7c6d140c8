//! Who may do what with an export, before the file system is asked: clients' networks, users that are taken
//! for another, and whether anything may be changed.

use crate::wire::rpc::Caller;
use std::net::IpAddr;
use std::str::FromStr;

#[derive(Clone, Debug)]
pub struct Policy {
    pub read_only: bool,
    pub squash: Squash,
    /// Who is taken for whom by `squash`.
    pub anonymous: Anonymous,
    /// Clients come from one of these; from anywhere, if there is none.
    pub networks: Vec<Network>,
}

/// Whose requests are taken for those of the anonymous user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    #[default]
    Nobody,
    Root,
    Everybody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anonymous {
    pub uid: u32,
    pub gid: u32,
}

impl Default for Policy {
    fn default() -> Self {
        let Caller { uid, gid, .. } = Caller::NOBODY;
        let anonymous = Anonymous { uid, gid };
        Self { read_only: false, squash: Squash::Nobody, anonymous, networks: Vec::new() }
    }
}

impl Policy {
    pub fn admits(&self, client: IpAddr) -> bool {
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(client))
    }

    /// Who a caller is taken for.
    pub fn caller(&self, says: Caller) -> Caller {
        let Anonymous { uid, gid } = self.anonymous;
        let unless_root = |id, anonymous| if id == 0 { anonymous } else { id };
        match self.squash {
            Squash::Nobody => says,
            Squash::Root => says.map(|id| unless_root(id, uid), |id| unless_root(id, gid)),
            Squash::Everybody => Caller::new(uid, gid),
        }
    }
}

/// Addresses with a common beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Those of IPv4 as IPv6 has them.
    first: u128,
    prefix_bits: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} isn't a network: 10.0.0.0/8, fd00::/8 or the address of one client")]
pub struct NoNetwork(String);

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.begins(as_v6(address)) == self.begins(self.first)
    }

    fn begins(&self, address: u128) -> u128 {
        address.checked_shr(128 - self.prefix_bits).unwrap_or(0)
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let wrong = || NoNetwork(text.into());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u32 = prefix.unwrap_or(bits);
        let network = Self { first: as_v6(address), prefix_bits: 128 - bits + prefix.min(bits) };
        // An address within a network isn't the network's: which of both was meant?
        let rest = network.first & !u128::MAX.checked_shl(128 - network.prefix_bits).unwrap_or(0);
        if prefix <= bits && rest == 0 { Ok(network) } else { Err(wrong()) }
    }
}

fn as_v6(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .to_bits()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_with_its_beginning() {
        let cases = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3/32", "10.1.2.4", false),
            ("0.0.0.0/0", "192.168.1.1", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("::/0", "192.168.1.1", true),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe80::1", false),
        ];
        for (network, address, is_in) in cases {
            let contains = Network::from_str(network).unwrap().contains(address.parse().unwrap());
            assert_eq!(contains, is_in, "{address} in {network}");
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0.1/8", "fd00::/129", "host", "10.0.0.0/x", "/8"] {
            assert!(Network::from_str(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn root_or_everybody_is_taken_for_the_anonymous_user() {
        let user = |uid, gid, groups: &[u32]| Caller::with_groups(uid, gid, groups);
        let policy = |squash| Policy {
            squash,
            anonymous: Anonymous { uid: 7, gid: 8 },
            ..Policy::default()
        };
        let (root, other) = (user(0, 0, &[0, 5]), user(1000, 0, &[5]));
        assert_eq!(policy(Squash::Nobody).caller(root), root);
        assert_eq!(policy(Squash::Root).caller(root), user(7, 8, &[8, 5]));
        assert_eq!(policy(Squash::Root).caller(other), user(1000, 8, &[5]));
        assert_eq!(policy(Squash::Everybody).caller(root), user(7, 8, &[]));
        assert_eq!(policy(Squash::Everybody).caller(other), user(7, 8, &[]));
    }
}
