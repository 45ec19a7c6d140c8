//! Acting as the caller: the kernel then decides what it may do, with its modes, ACLs and quotas.
//!
//! The identity for file systems is each thread's own. It is changed only when the next caller is another
//! one, and never changed back: each piece of work starts with saying as whom.

use crate::wire::rpc::Caller;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::set_thread_groups;
use std::cell::Cell;

thread_local! {
    static ACTS_AS: Cell<Option<Caller>> = const { Cell::new(None) };
}

/// Whether this server may act as others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It is root.
    Callers,
    /// Every file is the server's user's, whoever calls.
    Own,
}

impl Identity {
    pub fn of_this_process() -> Self {
        if nix::unistd::geteuid().is_root() { Identity::Callers } else { Identity::Own }
    }

    /// This thread acts as `caller` from here on.
    pub fn act_as(self, caller: &Caller) -> rustix::io::Result<()> {
        if self == Identity::Own || ACTS_AS.get() == Some(*caller) {
            return Ok(());
        }
        ACTS_AS.set(None); // in case that not all of it works
        let mut groups = [rustix::process::Gid::ROOT; crate::wire::rpc::GROUPS_MAX];
        for (group, &raw) in groups.iter_mut().zip(caller.groups()) {
            *group = gid(raw)?;
        }
        set_thread_groups(&groups[..caller.groups().len()])?;
        setfsgid(Gid::from_raw(gid(caller.gid)?.as_raw()));
        setfsuid(Uid::from_raw(caller.uid));
        // These two tell of no error, so they are asked: the same call again says who it is.
        if setfsuid(Uid::from_raw(caller.uid)).as_raw() != caller.uid
            || setfsgid(Gid::from_raw(caller.gid)).as_raw() != caller.gid
        {
            return Err(rustix::io::Errno::PERM);
        }
        ACTS_AS.set(Some(*caller));
        Ok(())
    }

    /// As the server itself, which may do everything.
    pub fn act_as_server(self) -> rustix::io::Result<()> {
        self.act_as(&Caller::ROOT)
    }
}

/// All ones is no group, and the kernel's calls mean "leave it" by it.
fn gid(raw: u32) -> rustix::io::Result<rustix::process::Gid> {
    if raw == u32::MAX {
        return Err(rustix::io::Errno::INVAL);
    }
    Ok(rustix::process::Gid::from_raw(raw))
}
