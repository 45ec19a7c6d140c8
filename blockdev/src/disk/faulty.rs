//! A disk that fails by plan, so that a test says which request fails and how.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::{Allocation, Buffer, Disk, Durability, Extent, Hold, PerKind, RequestKind};

/// Which requests fail. A request that fails isn't passed on.
///
/// ```
/// # use ankole_blockdev::disk::{Extent, FaultPlan, RequestKind};
/// let bad_sector = Extent { offset_bytes: 4096, length_bytes: 512 };
/// let plan = FaultPlan::default()
///     .fail_nth(RequestKind::Flush, 3, libc::EIO)
///     .fail_touching(RequestKind::Write, bad_sector, libc::ENOSPC);
/// ```
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    faults: Vec<Fault>,
    seen: PerKind<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    kind: RequestKind,
    trigger: Trigger,
    errno: i32,
}

#[derive(Clone, Copy, Debug)]
enum Trigger {
    /// The request with this number among those of its kind; the first is 1.
    Nth(u64),
    Touching(Extent),
    Every,
}

impl FaultPlan {
    /// Fails the `n`th request of `kind`, counted from 1 since the disk was made.
    pub fn fail_nth(self, kind: RequestKind, n: u64, errno: i32) -> Self {
        self.and(Fault { kind, trigger: Trigger::Nth(n), errno })
    }

    /// Fails every request of `kind` that has a byte in common with `range`.
    pub fn fail_touching(self, kind: RequestKind, range: Extent, errno: i32) -> Self {
        self.and(Fault { kind, trigger: Trigger::Touching(range), errno })
    }

    /// Fails every request of `kind`.
    pub fn fail_every(self, kind: RequestKind, errno: i32) -> Self {
        self.and(Fault { kind, trigger: Trigger::Every, errno })
    }

    fn and(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Counts the request, and says whether it fails.
    fn admit(&mut self, kind: RequestKind, at: Option<Extent>) -> io::Result<()> {
        self.seen[kind] += 1;
        let number = self.seen[kind];
        let hits = |fault: &&Fault| match fault.trigger {
            _ if fault.kind != kind => false,
            Trigger::Nth(n) => n == number,
            Trigger::Touching(range) => at.is_some_and(|at| at.overlaps(range)),
            Trigger::Every => true,
        };
        match self.faults.iter().find(hits) {
            Some(fault) => Err(io::Error::from_raw_os_error(fault.errno)),
            None => Ok(()),
        }
    }
}

/// Fails what the plan says, and passes everything else on to `inner`.
pub struct Faulty<D> {
    inner: D,
    plan: Rc<RefCell<FaultPlan>>,
}

impl<D: Disk> Faulty<D> {
    pub fn new(inner: D, plan: FaultPlan) -> Self {
        Self { inner, plan: Rc::new(RefCell::new(plan)) }
    }

    /// A handle to change the plan with while the disk is in use.
    pub fn plan(&self) -> Rc<RefCell<FaultPlan>> {
        self.plan.clone()
    }

    fn admit(&self, kind: RequestKind, at: Option<Extent>) -> io::Result<()> {
        self.plan.borrow_mut().admit(kind, at)
    }
}

impl<D: Disk> Disk for Faulty<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    async fn read(&self, at: Extent, into: Buffer) -> (io::Result<Hold>, Buffer) {
        match self.admit(RequestKind::Read, Some(at)) {
            Ok(()) => self.inner.read(at, into).await,
            Err(error) => (Err(error), into),
        }
    }

    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold> {
        self.admit(RequestKind::Write, Some(at))?;
        self.inner.write(at, from, durability).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.admit(RequestKind::Flush, None)?;
        self.inner.flush().await
    }

    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        self.admit(RequestKind::Trim, Some(at))?;
        self.inner.trim(at).await
    }

    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold> {
        self.admit(RequestKind::WriteZeroes, Some(at))?;
        self.inner.write_zeroes(at, durability).await
    }

    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        self.admit(RequestKind::Extents, Some(at))?;
        self.inner.extents(at).await
    }

    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        self.admit(RequestKind::Resize, None)?;
        self.inner.resize(size_bytes).await
    }
}
