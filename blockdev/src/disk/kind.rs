//! Names for the seven things a disk is asked, and a table with one entry for each.

use std::ops::{Index, IndexMut};

/// What a request asks of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    Extents,
    Resize,
}

impl RequestKind {
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::WriteZeroes,
        Self::Extents,
        Self::Resize,
    ];
}

/// One `T` for each kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerKind<T>([T; RequestKind::ALL.len()]);

impl<T: Copy> PerKind<T> {
    /// The same value for all kinds.
    pub fn all(value: T) -> Self {
        Self([value; RequestKind::ALL.len()])
    }

    /// This table with another value for `kind`.
    pub fn with(mut self, kind: RequestKind, value: T) -> Self {
        self[kind] = value;
        self
    }
}

impl<T> Index<RequestKind> for PerKind<T> {
    type Output = T;
    fn index(&self, kind: RequestKind) -> &T {
        &self.0[kind as usize]
    }
}

impl<T> IndexMut<RequestKind> for PerKind<T> {
    fn index_mut(&mut self, kind: RequestKind) -> &mut T {
        &mut self.0[kind as usize]
    }
}
