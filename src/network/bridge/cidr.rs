//! IP networks as configurations and results write them: an address and a prefix length.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address with the length of its network prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Cidr {
    /// The address, host bits included.
    pub(crate) address: IpAddr,
    /// Bits of the prefix.
    pub(crate) length: u8,
}

/// Text that is not `address/length`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an address with a prefix length, such as 10.88.0.0/16")]
pub(crate) struct BadCidr(String);

impl FromStr for Cidr {
    type Err = BadCidr;
    fn from_str(text: &str) -> Result<Cidr, BadCidr> {
        let bad = || BadCidr(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let cidr =
            Cidr { address: address.parse().map_err(|_| bad())?, length: length.parse().map_err(|_| bad())? };
        if cidr.length <= cidr.bits() { Ok(cidr) } else { Err(bad()) }
    }
}

impl TryFrom<String> for Cidr {
    type Error = BadCidr;
    fn try_from(text: String) -> Result<Cidr, BadCidr> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Cidr {
    fn bits(self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    fn host_mask(self) -> u128 {
        u128::MAX.checked_shr(128 - u32::from(self.bits() - self.length)).unwrap_or(0)
    }

    /// The same network with the host bits zero.
    pub(crate) fn network(self) -> Cidr {
        let number = number(self.address) & !self.host_mask();
        Cidr { address: address(number, self.address), length: self.length }
    }

    /// The last address: for IPv4 that is the broadcast address.
    pub(crate) fn last(self) -> IpAddr {
        address(number(self.address) | self.host_mask(), self.address)
    }

    /// Whether the address is one of the network.
    pub(crate) fn contains(self, ip: IpAddr) -> bool {
        let same_family = ip.is_ipv4() == self.address.is_ipv4();
        same_family && Cidr { address: ip, length: self.length }.network() == self.network()
    }
}

/// The address as a number.
pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The number as an address of the family of `like`; what does not fit is cut off.
pub(crate) fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_network_contains_exactly_what_lies_between_its_ends(base: u32, length in 0u8..=32, ip: u32) {
            let net = Cidr { address: IpAddr::V4(base.into()), length };
            let inside = number(net.network().address) <= u128::from(ip) && u128::from(ip) <= number(net.last());
            prop_assert_eq!(net.contains(IpAddr::V4(ip.into())), inside);
        }

        #[test]
        fn text_survives(base: u128, length in 0u8..=128) {
            let net = Cidr { address: IpAddr::V6(base.into()), length };
            prop_assert_eq!(net.to_string().parse::<Cidr>(), Ok(net));
        }

        #[test]
        fn foreign_text_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Cidr>();
        }
    }
}
