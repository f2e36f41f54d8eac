//! Addresses and prefixes as hash maps.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use wire::packet::mix;

pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// Prefixes of one family: a map per length, longest first.
#[derive(Clone, Debug)]
pub(super) struct Prefixes<A> {
    lengths: Vec<(u8, A, Map<A, u32>)>,
}

impl<A> Default for Prefixes<A> {
    fn default() -> Self {
        Self { lengths: Vec::new() }
    }
}

impl<A: Address> Prefixes<A> {
    pub(super) fn insert(&mut self, network: A, length: u8, index: u32) {
        let at = match self.lengths.binary_search_by(|(have, _, _)| length.cmp(have)) {
            Ok(at) => at,
            Err(at) => {
                self.lengths.insert(at, (length, A::mask(length), Map::default()));
                at
            }
        };
        self.lengths[at].2.entry(network).or_insert(index);
    }

    /// Makes a prefix that leads to the place `from` lead to `to`, or takes it out.
    pub(super) fn repoint(&mut self, network: A, length: u8, from: u32, to: Option<u32>) {
        let Ok(at) = self.lengths.binary_search_by(|(have, _, _)| length.cmp(have)) else { return };
        let map = &mut self.lengths[at].2;
        repoint(map, network, from, to);
        if map.is_empty() {
            self.lengths.remove(at);
        }
    }

    #[inline]
    pub(super) fn longest(&self, address: A) -> Option<u32> {
        self.lengths.iter().find_map(|(_, mask, map)| map.get(&address.and(*mask))).copied()
    }
}

/// Makes an entry that leads to the place `from` lead to `to`, or takes it out.
pub(super) fn repoint<K: Eq + Hash>(map: &mut Map<K, u32>, key: K, from: u32, to: Option<u32>) {
    if let Entry::Occupied(mut entry) = map.entry(key)
        && *entry.get() == from
    {
        match to {
            Some(to) => _ = entry.insert(to),
            None => _ = entry.remove(),
        }
    }
}

/// An address as a number.
pub(super) trait Address: Copy + Eq + Hash {
    /// The netmask of this many bits.
    fn mask(length: u8) -> Self;
    fn and(self, mask: Self) -> Self;
}

impl Address for u32 {
    fn mask(length: u8) -> Self {
        Self::MAX.checked_shl(Self::BITS - Self::from(length)).unwrap_or(0)
    }

    #[inline]
    fn and(self, mask: Self) -> Self {
        self & mask
    }
}

impl Address for u128 {
    fn mask(length: u8) -> Self {
        Self::MAX.checked_shl(Self::BITS - u32::from(length)).unwrap_or(0)
    }

    #[inline]
    fn and(self, mask: Self) -> Self {
        self & mask
    }
}

/// A fast hash of addresses. Keys come from Node objects, not from packets: packets are only looked up.
#[derive(Default)]
pub(super) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.0 = mix(self.0, u64::from(value));
    }

    #[inline]
    fn write_u128(&mut self, value: u128) {
        self.0 = mix(mix(self.0, value as u64), (value >> 64) as u64);
    }
}
