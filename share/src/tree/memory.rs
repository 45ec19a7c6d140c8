//! A tree in memory, for tests: as small as one can be that keeps the promises of the trait.
//!
//! Root may do everything; others what the mode's bits for all say.

use super::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const ROOT: u64 = 1;
const FIRST_COOKIE: u64 = 3;
const BLOCK_BYTES: usize = 4096;

#[derive(Clone, Default)]
pub struct MemoryTree {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    nodes: Mutex<Nodes>,
    lost_writes: AtomicU64,
}

struct Nodes {
    all: BTreeMap<u64, Node>,
    last: u64,
    remembered: Vec<(Box<[u8]>, Claims)>,
    /// As on a disk that can't be written.
    never_forgets: bool,
}

struct Node {
    attributes: Attributes,
    content: NodeContent,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

enum NodeContent {
    Bytes(Vec<u8>),
    Names { parent: u64, names: BTreeMap<Vec<u8>, (u64, u64)>, last_cookie: u64 },
    Link(Vec<u8>),
    Nothing,
}

/// The file and the cookie of each name.
type Names = BTreeMap<Vec<u8>, (u64, u64)>;

impl Default for Nodes {
    fn default() -> Self {
        let names =
            NodeContent::Names { parent: ROOT, names: BTreeMap::new(), last_cookie: FIRST_COOKIE };
        let mut nodes =
            Self { all: BTreeMap::new(), last: ROOT, remembered: Vec::new(), never_forgets: false };
        nodes.all.insert(ROOT, new_node(ROOT, FileType::Directory, 0o755, &Caller::ROOT, names));
        nodes
    }
}

fn new_node(id: u64, kind: FileType, mode: u32, caller: &Caller, content: NodeContent) -> Node {
    let time = Time { seconds: 1, nanoseconds: 0 };
    let attributes = Attributes {
        kind,
        file_id: id,
        mode,
        links: if kind == FileType::Directory { 2 } else { 1 },
        uid: caller.uid,
        gid: caller.gid,
        size_bytes: 0,
        used_bytes: 0,
        device: (0, 0),
        change: 1,
        accessed: time,
        modified: time,
        changed: time,
        created: None,
    };
    Node { attributes, content, xattrs: BTreeMap::new() }
}

fn handle(id: u64) -> FileHandle {
    FileHandle::new(&id.to_be_bytes()).expect("8 bytes fit")
}

fn id(handle: FileHandle) -> Result<u64> {
    Ok(u64::from_be_bytes(handle.as_bytes().try_into().map_err(|_| Status::BadHandle)?))
}

impl Nodes {
    fn node(&self, file: FileHandle) -> Result<&Node> {
        self.all.get(&id(file)?).ok_or(Status::Stale)
    }

    fn node_mut(&mut self, file: FileHandle) -> Result<&mut Node> {
        self.all.get_mut(&id(file)?).ok_or(Status::Stale)
    }

    fn names(&self, directory: FileHandle) -> Result<(u64, &Names)> {
        match &self.node(directory)?.content {
            NodeContent::Names { parent, names, .. } => Ok((*parent, names)),
            NodeContent::Link(_) => Err(Status::Symlink),
            _ => Err(Status::NotDir),
        }
    }

    fn find(&self, directory: FileHandle, name: &[u8]) -> Result<u64> {
        self.names(directory)?.1.get(name).map(|(id, _)| *id).ok_or(Status::NoEnt)
    }

    fn insert(&mut self, directory: FileHandle, name: &[u8], file: u64) -> Result<Changed> {
        let node = self.node_mut(directory)?;
        let NodeContent::Names { names, last_cookie, .. } = &mut node.content else {
            return Err(Status::NotDir);
        };
        *last_cookie += 1;
        names.insert(name.into(), (file, *last_cookie));
        Ok(changed(node))
    }

    fn take(&mut self, directory: FileHandle, name: &[u8]) -> Result<(u64, Changed)> {
        let node = self.node_mut(directory)?;
        let NodeContent::Names { names, .. } = &mut node.content else {
            return Err(Status::NotDir);
        };
        let (file, _) = names.remove(name).ok_or(Status::NoEnt)?;
        Ok((file, changed(node)))
    }

    fn unlink(&mut self, file: u64) {
        if let Some(node) = self.all.get_mut(&file) {
            node.attributes.links -= 1;
            let is_directory = matches!(node.content, NodeContent::Names { .. });
            if is_directory {
                node.attributes.links = 0;
            }
        }
    }

    fn is_empty(&self, file: u64) -> bool {
        !matches!(&self.all[&file].content, NodeContent::Names { names, .. } if !names.is_empty())
    }
}

fn unchanged(change: u64) -> Changed {
    Changed { before: change, after: change }
}

fn changed(node: &mut Node) -> Changed {
    let before = node.attributes.change;
    node.attributes.change += 1;
    Changed { before, after: node.attributes.change }
}

impl MemoryTree {
    pub fn never_forget(&self, never: bool) {
        self.lock().never_forgets = never;
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.shared.lock()
    }

    fn permit(&self, caller: &Caller, directory: FileHandle) -> Result<()> {
        self.permit_access(caller, directory, |access| access.write && access.execute)
    }

    fn permit_access(
        &self,
        caller: &Caller,
        file: FileHandle,
        enough: impl Fn(Access) -> bool,
    ) -> Result<()> {
        let all = Access { read: true, write: true, execute: true };
        if enough(self.access(caller, file, all)?) { Ok(()) } else { Err(Status::Access) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree for MemoryTree {
    fn id(&self) -> u128 {
        7
    }

    fn root(&self) -> FileHandle {
        handle(ROOT)
    }

    fn check(&self, bytes: &[u8]) -> Result<FileHandle> {
        let handle = FileHandle::new(bytes).ok_or(Status::BadHandle)?;
        match self.lock().node(handle)?.attributes.links {
            0 => Err(Status::Stale), // it is kept, for who has it open
            _ => Ok(handle),
        }
    }

    fn attributes(&self, file: FileHandle) -> Result<Attributes> {
        self.lock().node(file).map(|node| node.attributes)
    }

    fn space(&self) -> Result<Space> {
        let bytes = 1 << 30;
        Ok(Space {
            total_bytes: bytes,
            free_bytes: bytes,
            available_bytes: bytes,
            total_files: 1 << 20,
            free_files: 1 << 20,
        })
    }

    fn access(&self, caller: &Caller, file: FileHandle, wanted: Access) -> Result<Access> {
        let mode = self.attributes(file)?.mode;
        let may = |bit| caller.uid == 0 || mode & bit != 0;
        Ok(Access {
            read: wanted.read && may(4),
            write: wanted.write && may(2),
            execute: wanted.execute && may(1),
        })
    }

    fn lookup(&self, _: &Caller, directory: FileHandle, name: Name) -> Result<FileHandle> {
        self.lock().find(directory, name.as_bytes()).map(handle)
    }

    fn parent(&self, _: &Caller, directory: FileHandle) -> Result<FileHandle> {
        let parent = handle(self.lock().names(directory)?.0);
        if directory == self.root() { Err(Status::NoEnt) } else { Ok(parent) }
    }

    fn read_directory(
        &self,
        _: &Caller,
        directory: FileHandle,
        after: u64,
        visit: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<bool> {
        let mut entries: Vec<(u64, Vec<u8>, u64)> = {
            let nodes = self.lock();
            let names = nodes.names(directory)?.1.iter();
            names.map(|(name, (id, cookie))| (*cookie, name.clone(), *id)).collect()
        };
        entries.sort();
        for (cookie, name, id) in entries.iter().filter(|(cookie, ..)| *cookie > after) {
            let file = || Ok((handle(*id), self.attributes(handle(*id))?));
            if visit(Entry { name, cookie: *cookie, file: &file }).is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_link(&self, _: &Caller, link: FileHandle) -> Result<Vec<u8>> {
        match &self.lock().node(link)?.content {
            NodeContent::Link(to) => Ok(to.clone()),
            _ => Err(Status::Inval),
        }
    }

    fn create(
        &self,
        caller: &Caller,
        directory: FileHandle,
        name: Name,
        kind: NewFile,
        mode: u32,
    ) -> Result<(FileHandle, Changed)> {
        self.permit(caller, directory)?;
        let mut nodes = self.lock();
        match nodes.find(directory, name.as_bytes()) {
            Ok(_) => return Err(Status::Exist),
            Err(Status::NoEnt) => {}
            Err(status) => return Err(status),
        }
        nodes.last += 1;
        let new = nodes.last;
        let (kind, content) = match kind {
            NewFile::Regular => (FileType::Regular, NodeContent::Bytes(Vec::new())),
            NewFile::Directory => {
                let (parent, names) = (id(directory)?, BTreeMap::new());
                (
                    FileType::Directory,
                    NodeContent::Names { parent, names, last_cookie: FIRST_COOKIE },
                )
            }
            NewFile::Symlink(to) => (FileType::Symlink, NodeContent::Link(to.into())),
            NewFile::Special(kind, ..) => (kind, NodeContent::Nothing),
        };
        nodes.all.insert(new, new_node(new, kind, mode, caller, content));
        let changed = nodes.insert(directory, name.as_bytes(), new)?;
        Ok((handle(new), changed))
    }

    fn remove(&self, caller: &Caller, directory: FileHandle, name: Name) -> Result<Changed> {
        self.permit(caller, directory)?;
        let mut nodes = self.lock();
        let file = nodes.find(directory, name.as_bytes())?;
        if !nodes.is_empty(file) {
            return Err(Status::NotEmpty);
        }
        let (file, changed) = nodes.take(directory, name.as_bytes())?;
        nodes.unlink(file);
        Ok(changed)
    }

    fn rename(
        &self,
        caller: &Caller,
        from: (FileHandle, Name),
        to: (FileHandle, Name),
    ) -> Result<(Changed, Changed)> {
        self.permit(caller, from.0)?;
        self.permit(caller, to.0)?;
        let mut nodes = self.lock();
        let moved = nodes.find(from.0, from.1.as_bytes())?;
        nodes.names(to.0)?;
        let replaced = nodes.find(to.0, to.1.as_bytes()).ok();
        if replaced == Some(moved) {
            let now = |file| nodes.node(file).map(|node| unchanged(node.attributes.change));
            return Ok((now(from.0)?, now(to.0)?));
        }
        if let Some(replaced) = replaced {
            let kind = |id: u64| nodes.all[&id].attributes.kind;
            if (kind(moved) == FileType::Directory) != (kind(replaced) == FileType::Directory) {
                return Err(Status::Exist);
            }
            if !nodes.is_empty(replaced) {
                return Err(Status::NotEmpty);
            }
        }
        let (_, source) = nodes.take(from.0, from.1.as_bytes())?;
        let target = nodes.insert(to.0, to.1.as_bytes(), moved)?;
        if let Some(replaced) = replaced {
            nodes.unlink(replaced);
        }
        if let NodeContent::Names { parent, .. } = &mut nodes.node_mut(handle(moved))?.content {
            *parent = id(to.0)?;
        }
        Ok((source, target))
    }

    fn link(
        &self,
        caller: &Caller,
        file: FileHandle,
        directory: FileHandle,
        name: Name,
    ) -> Result<Changed> {
        self.permit(caller, directory)?;
        let mut nodes = self.lock();
        if nodes.find(directory, name.as_bytes()).is_ok() {
            return Err(Status::Exist);
        }
        nodes.node_mut(file)?.attributes.links += 1;
        nodes.insert(directory, name.as_bytes(), id(file)?)
    }

    fn set(&self, caller: &Caller, file: FileHandle, changes: &Change) -> Result<()> {
        let mut nodes = self.lock();
        let node = nodes.node_mut(file)?;
        let of = &mut node.attributes;
        if caller.uid != 0 && caller.uid != of.uid {
            return Err(Status::Perm);
        }
        let time = |set: Option<SetTime>, now: Time| match set {
            Some(SetTime::To(time)) => time,
            Some(SetTime::Now) => Time { seconds: now.seconds + 1, nanoseconds: 0 },
            None => now,
        };
        of.mode = changes.mode.unwrap_or(of.mode);
        of.uid = changes.uid.unwrap_or(of.uid);
        of.gid = changes.gid.unwrap_or(of.gid);
        of.accessed = time(changes.accessed, of.accessed);
        of.modified = time(changes.modified, of.modified);
        changed(node);
        Ok(())
    }

    fn has_xattrs(&self) -> bool {
        true
    }

    fn xattr(&self, caller: &Caller, file: FileHandle, name: XattrName) -> Result<Vec<u8>> {
        self.permit_access(caller, file, |access| access.read)?;
        self.lock().node(file)?.xattrs.get(name.as_bytes()).cloned().ok_or(Status::NoXattr)
    }

    fn xattr_names(&self, _: &Caller, file: FileHandle) -> Result<Vec<Vec<u8>>> {
        Ok(self.lock().node(file)?.xattrs.keys().cloned().collect())
    }

    fn set_xattr(
        &self,
        caller: &Caller,
        file: FileHandle,
        name: XattrName,
        value: &[u8],
        when: SetXattr,
    ) -> Result<Changed> {
        self.permit_access(caller, file, |access| access.write)?;
        let mut nodes = self.lock();
        let node = nodes.node_mut(file)?;
        match (when, node.xattrs.contains_key(name.as_bytes())) {
            (SetXattr::Create, true) => return Err(Status::Exist),
            (SetXattr::Replace, false) => return Err(Status::NoXattr),
            _ => node.xattrs.insert(name.as_bytes().into(), value.into()),
        };
        Ok(changed(node))
    }

    fn remove_xattr(&self, caller: &Caller, file: FileHandle, name: XattrName) -> Result<Changed> {
        self.permit_access(caller, file, |access| access.write)?;
        let mut nodes = self.lock();
        let node = nodes.node_mut(file)?;
        node.xattrs.remove(name.as_bytes()).ok_or(Status::NoXattr)?;
        Ok(changed(node))
    }

    fn copy(
        &self,
        caller: &Caller,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
    ) -> Result<u64> {
        let mut bytes = vec![0; length.min(1 << 24) as usize];
        let (read, _) = self.open(from.0)?.read(caller, from.1, &mut bytes)?;
        let into = self.open(to.0)?;
        Ok(into.write(caller, to.1, &bytes[..read], Stability::Unstable)? as u64)
    }

    fn clone_range(
        &self,
        caller: &Caller,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
    ) -> Result<()> {
        let left = self.attributes(from.0)?.size_bytes.checked_sub(from.1).ok_or(Status::Inval)?;
        let length = if length == 0 { left } else { length };
        if length > left {
            return Err(Status::Inval);
        }
        self.copy(caller, from, to, length).map(|_| ())
    }

    fn open(&self, file: FileHandle) -> Result<Arc<dyn OpenFile>> {
        match &self.lock().node(file)?.content {
            NodeContent::Bytes(_) => Ok(Arc::new(Opened { tree: self.shared.clone(), file })),
            NodeContent::Names { .. } => Err(Status::IsDir),
            NodeContent::Link(_) => Err(Status::Symlink),
            NodeContent::Nothing => Err(Status::WrongType),
        }
    }

    fn write_verifier(&self) -> u64 {
        self.shared.lost_writes.load(Ordering::SeqCst)
    }

    fn remembered(&self) -> Vec<(Box<[u8]>, Claims)> {
        self.lock().remembered.clone()
    }

    fn remember(&self, owner: &[u8], claims: Claims) -> Result<()> {
        let mut nodes = self.lock();
        nodes.remembered.retain(|(other, _)| **other != *owner);
        nodes.remembered.push((owner.into(), claims));
        Ok(())
    }

    fn forget(&self, owners: &[&[u8]]) -> Result<()> {
        if self.lock().never_forgets {
            return Err(Status::Io);
        }
        self.lock().remembered.retain(|(other, _)| !owners.contains(&&**other));
        Ok(())
    }
}

struct Opened {
    tree: Arc<Shared>,
    file: FileHandle,
}

impl Opened {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T> {
        let mut nodes = self.tree.lock();
        let node = nodes.node_mut(self.file)?;
        let NodeContent::Bytes(bytes) = &mut node.content else { return Err(Status::Inval) };
        let done = work(bytes);
        node.attributes.size_bytes = bytes.len() as u64;
        Ok(done)
    }

    fn changed(&self) -> Result<()> {
        changed(self.tree.lock().node_mut(self.file)?);
        Ok(())
    }
}

impl OpenFile for Opened {
    fn read(&self, _: &Caller, offset: u64, into: &mut [u8]) -> Result<(usize, bool)> {
        self.with(|bytes| {
            let start = (offset.min(bytes.len() as u64)) as usize;
            let end = bytes.len().min(start + into.len());
            into[..end - start].copy_from_slice(&bytes[start..end]);
            (end - start, end == bytes.len())
        })
    }

    fn write(&self, _: &Caller, offset: u64, data: &[u8], _: Stability) -> Result<usize> {
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= 1 << 24);
        let end = end.ok_or(Status::FBig)? as usize;
        self.with(|bytes| {
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset as usize..end].copy_from_slice(data);
        })?;
        self.changed()?;
        Ok(data.len())
    }

    fn commit(&self) -> Result<u64> {
        Ok(self.tree.lost_writes.load(Ordering::SeqCst))
    }

    fn set_size(&self, _: &Caller, size_bytes: u64) -> Result<()> {
        let size = usize::try_from(size_bytes).ok().filter(|&size| size <= 1 << 24);
        let size = size.ok_or(Status::FBig)?;
        self.with(|bytes| bytes.resize(size, 0))?;
        self.changed()
    }
    fn allocate(&self, _: &Caller, range: Range) -> Result<()> {
        let end = range.offset + range.length;
        let end = usize::try_from(end).ok().filter(|&end| end <= 1 << 24).ok_or(Status::NoSpc)?;
        self.with(|bytes| bytes.resize(bytes.len().max(end), 0))?;
        self.changed()
    }

    fn deallocate(&self, _: &Caller, range: Range) -> Result<()> {
        self.with(|bytes| {
            let end = bytes.len().min((range.offset + range.length) as usize);
            let start = end.min(range.offset as usize);
            bytes[start..end].fill(0);
        })?;
        self.changed()
    }

    /// A whole block of zeroes is a hole.
    fn next(&self, what: Content, offset: u64) -> Result<Option<u64>> {
        self.with(|bytes| {
            if offset >= bytes.len() as u64 {
                return Err(Status::NxIo);
            }
            let block_at = |at: usize| at / BLOCK_BYTES * BLOCK_BYTES;
            let mut at = offset as usize;
            while at < bytes.len() {
                let block = &bytes[block_at(at)..bytes.len().min(block_at(at) + BLOCK_BYTES)];
                let is_hole = block.iter().all(|&byte| byte == 0);
                if is_hole == (what == Content::Hole) {
                    return Ok(Some(at as u64));
                }
                at = block_at(at) + BLOCK_BYTES;
            }
            Ok((what == Content::Hole).then_some(bytes.len() as u64))
        })?
    }
}
