//! Which pairs of NATs can be crossed.
//!
//! ```text
//!                  Full    Restricted  Port restr.  Symmetric
//! Full             easy    easy        easy         easy
//! Restricted       easy    easy        easy         easy
//! Port restricted  easy    easy        easy         difficult
//! Symmetric        easy    easy        difficult    infeasible
//! ```
//!
//! Difficult: the symmetric side's next port has to be known beforehand, which it is when that NAT counts or keeps ports. Infeasible: both
//! next ports have to be; so the pair stays on the relay unless both count. Nothing is ever left untried because of this table; it says what
//! may be expected, which is what `edgelink netcheck` shows and what the simulator holds the machines to.

use super::behaviour::{NatBehaviour, NatClass, Ports};

/// A cell of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feasibility {
    /// A punch gets through.
    Easy,
    /// Only when a port can be foretold.
    Difficult,
    /// Only when two ports can be foretold.
    Infeasible,
}

/// What may be expected of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expectation {
    /// A direct path.
    Direct,
    /// Perhaps one, by luck; else the relay.
    Perhaps,
}

/// The cell for two classes.
pub const fn feasibility(one: NatClass, other: NatClass) -> Feasibility {
    match (one, other) {
        (NatClass::Symmetric, NatClass::Symmetric) => Feasibility::Infeasible,
        (NatClass::Symmetric, NatClass::PortRestricted) | (NatClass::PortRestricted, NatClass::Symmetric) => {
            Feasibility::Difficult
        }
        _ => Feasibility::Easy,
    }
}

/// What may be expected of two NATs, ports included.
pub const fn expectation(one: &NatBehaviour, other: &NatBehaviour) -> Expectation {
    match feasibility(one.class(), other.class()) {
        Feasibility::Easy => Expectation::Direct,
        Feasibility::Difficult if can_foretell(*one) && can_foretell(*other) => Expectation::Direct,
        Feasibility::Infeasible if one.step().is_some() && other.step().is_some() => Expectation::Direct,
        Feasibility::Difficult | Feasibility::Infeasible => Expectation::Perhaps,
    }
}

/// Whether the port for a new destination is known beforehand.
const fn can_foretell(nat: NatBehaviour) -> bool {
    !matches!(nat.class(), NatClass::Symmetric) || matches!(nat.ports, Ports::Preserving | Ports::Counting(_))
}

#[cfg(test)]
mod tests {
    use super::super::behaviour::{Filtering, Mapping};
    use super::*;

    #[test]
    fn the_matrix_is_the_sources_and_symmetric() {
        use Feasibility::{Difficult as D, Easy as E, Infeasible as I};
        let table = [[E, E, E, E], [E, E, E, E], [E, E, E, D], [E, E, D, I]];
        for (row, one) in NatClass::ALL.into_iter().enumerate() {
            for (column, other) in NatClass::ALL.into_iter().enumerate() {
                assert_eq!(feasibility(one, other), table[row][column], "{one:?} {other:?}");
                assert_eq!(feasibility(one, other), feasibility(other, one));
            }
        }
    }

    #[test]
    fn a_symmetric_nat_that_counts_is_promised_to_a_port_restricted_one_and_to_its_like() {
        let cone = NatBehaviour {
            mapping: Some(Mapping::EndpointIndependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ports: Ports::Random,
        };
        let symmetric = |ports| NatBehaviour {
            mapping: Some(Mapping::AddressAndPortDependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ports,
        };
        let (counting, random) = (symmetric(Ports::Counting(1)), symmetric(Ports::Random));
        assert_eq!(expectation(&cone, &counting), Expectation::Direct);
        assert_eq!(expectation(&counting, &counting), Expectation::Direct);
        assert_eq!(expectation(&cone, &random), Expectation::Perhaps);
        assert_eq!(expectation(&counting, &random), Expectation::Perhaps);
    }
}
