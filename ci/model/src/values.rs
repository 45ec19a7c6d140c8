//! Values of the one block, and sets of them.

/// 0 is what the volume had at the start, 1 and 2 are the clients' writes.
pub type Value = u8;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Values(u8);

impl Values {
    pub const fn only(value: Value) -> Self {
        Self(1 << value)
    }

    pub const fn has(self, value: Value) -> bool {
        self.0 & 1 << value != 0
    }

    /// Bit n is value n.
    pub const fn bits(self) -> u64 {
        self.0 as u64
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self(bits as u8)
    }

    pub fn add(&mut self, value: Value) {
        self.0 |= 1 << value;
    }

    pub fn remove(&mut self, value: Value) {
        self.0 &= !(1 << value);
    }

    pub fn clear(&mut self) {
        self.0 = 0;
    }
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..8).filter(|&value| self.has(value))).finish()
    }
}
