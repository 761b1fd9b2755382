//! Slots with generations: what [`Token`]s name.

use super::driver::Token;

/// A dense table whose slots are reused under new generations, so that a stale token finds nothing.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, value: T) -> Token {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.entries[slot as usize];
            entry.value = Some(value);
            return Token { slot, generation: entry.generation };
        }
        let slot = u32::try_from(self.entries.len()).expect("descriptors are fewer than 2^32");
        self.entries.push(Entry { generation: 0, value: Some(value) });
        Token { slot, generation: 0 }
    }

    pub(super) fn get(&self, token: Token) -> Option<&T> {
        let entry = self.entries.get(token.slot())?;
        if entry.generation == token.generation { entry.value.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let entry = self.entries.get_mut(token.slot())?;
        if entry.generation == token.generation { entry.value.as_mut() } else { None }
    }

    /// The token of whatever is in the slot now.
    pub(super) fn token_at(&self, slot: u32) -> Option<Token> {
        let entry = self.entries.get(slot as usize)?;
        entry.value.as_ref().map(|_| Token { slot, generation: entry.generation })
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        self.get(token)?;
        let entry = &mut self.entries[token.slot()];
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(token.slot);
        entry.value.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_finds_nothing_in_a_reused_slot() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(first.slot(), second.slot());
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&'b')));
        assert_eq!((slab.remove(first), slab.get_mut(first)), (None, None));
        assert_eq!(slab.token_at(first.slot), Some(second));
    }
}
