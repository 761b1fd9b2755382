//! A NAT's behaviour as values, and as the three bytes that peers are told (`docs/protocol.md` §8.3).

use serde::Serialize;

/// When a NAT gives one inner address and port the same outer ones (RFC 4787 §4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// There is no NAT: what servers see is the socket's own address.
    Direct,
    /// Always.
    EndpointIndependent,
    /// Towards the same address.
    AddressDependent,
    /// Towards the same address and port.
    AddressAndPortDependent,
}

/// Whose packets a NAT (or a firewall) lets in to an address and port that have sent something (RFC 4787 §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filtering {
    /// Anyone's.
    EndpointIndependent,
    /// Of addresses that were sent to.
    AddressDependent,
    /// Of addresses and ports that were sent to.
    AddressAndPortDependent,
}

/// How a NAT chooses outer ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ports {
    /// Not known.
    #[default]
    Unknown,
    /// The inner port.
    Preserving,
    /// The last one it gave plus this, which may be negative.
    Counting(i16),
    /// No order was seen.
    Random,
}

/// The four classes of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NatClass {
    /// One outer port for everyone, open to everyone; also: no NAT and no firewall.
    FullCone,
    /// One outer port for everyone, open to addresses that were sent to.
    Restricted,
    /// One outer port for everyone, open to addresses and ports that were sent to.
    PortRestricted,
    /// Another outer port for every destination.
    Symmetric,
}

impl NatClass {
    /// All, from the easiest.
    pub const ALL: [Self; 4] = [Self::FullCone, Self::Restricted, Self::PortRestricted, Self::Symmetric];
}

/// What is known of a NAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct NatBehaviour {
    /// `None`: not known.
    pub mapping: Option<Mapping>,
    /// `None`: not known.
    pub filtering: Option<Filtering>,
    /// How it chooses ports.
    pub ports: Ports,
}

/// For people.
impl std::fmt::Display for NatBehaviour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.mapping {
            None => return f.write_str("NAT not known (no STUN server has answered)"),
            Some(Mapping::Direct) => "no NAT",
            Some(Mapping::EndpointIndependent) => "NAT with one outer port for everyone",
            Some(Mapping::AddressDependent) => "NAT with an outer port for each address",
            Some(Mapping::AddressAndPortDependent) => "NAT with an outer port for each destination",
        })?;
        match self.ports {
            Ports::Unknown => {}
            _ if self.mapping == Some(Mapping::Direct) => {}
            Ports::Preserving => f.write_str(", which keeps port numbers")?,
            Ports::Counting(step) => write!(f, ", which counts ports by {step}")?,
            Ports::Random => f.write_str(", with random ports")?,
        }
        f.write_str(match self.filtering {
            None => "",
            Some(Filtering::EndpointIndependent) => "; open to anyone",
            Some(Filtering::AddressDependent) => "; open to addresses that were sent to",
            Some(Filtering::AddressAndPortDependent) => "; open to addresses and ports that were sent to",
        })
    }
}

impl NatBehaviour {
    /// type (1) ‖ step (2)
    pub const LEN: usize = 3;

    /// The class; what is not known is taken as the worst.
    pub const fn class(&self) -> NatClass {
        match (self.mapping, self.filtering) {
            (Some(Mapping::Direct | Mapping::EndpointIndependent), Some(Filtering::EndpointIndependent)) => {
                NatClass::FullCone
            }
            (Some(Mapping::Direct | Mapping::EndpointIndependent), Some(Filtering::AddressDependent)) => {
                NatClass::Restricted
            }
            (Some(Mapping::Direct | Mapping::EndpointIndependent), _) => NatClass::PortRestricted,
            _ => NatClass::Symmetric,
        }
    }

    /// Whether every destination gets a port of its own.
    pub const fn is_symmetric(&self) -> bool {
        matches!(self.mapping, Some(Mapping::AddressDependent | Mapping::AddressAndPortDependent))
    }

    /// By how much the next port differs from the last, if it can be said.
    pub const fn step(&self) -> Option<i16> {
        match (self.is_symmetric(), self.ports) {
            (true, Ports::Counting(step)) => Some(step),
            _ => None,
        }
    }

    /// For CALL: bits 0-2 mapping, bits 3-4 filtering, bits 5-6 ports (0: unknown everywhere), then the step.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mapping = match self.mapping {
            None => 0,
            Some(Mapping::Direct) => 1,
            Some(Mapping::EndpointIndependent) => 2,
            Some(Mapping::AddressDependent) => 3,
            Some(Mapping::AddressAndPortDependent) => 4,
        };
        let filtering = match self.filtering {
            None => 0,
            Some(Filtering::EndpointIndependent) => 1,
            Some(Filtering::AddressDependent) => 2,
            Some(Filtering::AddressAndPortDependent) => 3,
        };
        let (ports, step) = match self.ports {
            Ports::Unknown => (0, 0),
            Ports::Preserving => (1, 0),
            Ports::Counting(step) => (2, step),
            Ports::Random => (3, 0),
        };
        let [high, low] = step.to_be_bytes();
        [mapping | filtering << 3 | ports << 5, high, low]
    }

    /// What [`NatBehaviour::to_bytes`] wrote; numbers that mean nothing are "unknown".
    pub const fn from_bytes([kind, high, low]: [u8; Self::LEN]) -> Self {
        let mapping = match kind & 7 {
            1 => Some(Mapping::Direct),
            2 => Some(Mapping::EndpointIndependent),
            3 => Some(Mapping::AddressDependent),
            4 => Some(Mapping::AddressAndPortDependent),
            _ => None,
        };
        let filtering = match kind >> 3 & 3 {
            1 => Some(Filtering::EndpointIndependent),
            2 => Some(Filtering::AddressDependent),
            3 => Some(Filtering::AddressAndPortDependent),
            _ => None,
        };
        let ports = match kind >> 5 & 3 {
            1 => Ports::Preserving,
            2 => Ports::Counting(i16::from_be_bytes([high, low])),
            3 => Ports::Random,
            _ => Ports::Unknown,
        };
        Self { mapping, filtering, ports }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_behaviour_survives_the_three_bytes() {
        let mappings = [
            None,
            Some(Mapping::Direct),
            Some(Mapping::EndpointIndependent),
            Some(Mapping::AddressDependent),
            Some(Mapping::AddressAndPortDependent),
        ];
        let filterings = [
            None,
            Some(Filtering::EndpointIndependent),
            Some(Filtering::AddressDependent),
            Some(Filtering::AddressAndPortDependent),
        ];
        let ports =
            [Ports::Unknown, Ports::Preserving, Ports::Counting(-2), Ports::Counting(1), Ports::Random];
        for mapping in mappings {
            for filtering in filterings {
                for ports in ports {
                    let behaviour = NatBehaviour { mapping, filtering, ports };
                    assert_eq!(NatBehaviour::from_bytes(behaviour.to_bytes()), behaviour);
                }
            }
        }
        assert_eq!(NatBehaviour::from_bytes([0x87, 1, 2]), NatBehaviour::default());
    }

    #[test]
    fn what_is_not_known_is_taken_as_the_worst() {
        let mut behaviour = NatBehaviour::default();
        assert_eq!(behaviour.class(), NatClass::Symmetric);
        behaviour.mapping = Some(Mapping::EndpointIndependent);
        assert_eq!(behaviour.class(), NatClass::PortRestricted);
        behaviour.filtering = Some(Filtering::AddressDependent);
        assert_eq!(behaviour.class(), NatClass::Restricted);
        behaviour.mapping = Some(Mapping::Direct);
        behaviour.filtering = Some(Filtering::EndpointIndependent);
        assert_eq!(behaviour.class(), NatClass::FullCone);
    }
}
