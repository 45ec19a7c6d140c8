//! The operations of the trait: each finds the files, acts as the caller, and makes stable what has to be.

use super::*;

impl Tree for LocalTree {
    fn id(&self) -> u128 {
        self.records.id
    }

    fn root(&self) -> FileHandle {
        self.root.handle
    }

    fn check(&self, handle: &[u8]) -> Result<FileHandle> {
        let handle = FileHandle::new(handle).ok_or(Status::BadHandle)?;
        self.inode(handle).map(|inode| inode.handle)
    }

    fn attributes(&self, file: FileHandle) -> Result<Attributes> {
        let inode = self.inode(file)?;
        let changes = inode.changes();
        stat::attributes(&statx(inode.place(), c"")?, changes)
    }

    fn space(&self) -> Result<Space> {
        let space = rustix::fs::fstatvfs(self.root.place())?;
        Ok(Space {
            total_bytes: space.f_blocks * space.f_frsize,
            free_bytes: space.f_bfree * space.f_frsize,
            available_bytes: space.f_bavail * space.f_frsize,
            total_files: space.f_files,
            free_files: space.f_ffree,
        })
    }

    fn access(&self, caller: &Caller, file: FileHandle, wanted: Access) -> Result<Access> {
        let inode = self.inode(file)?;
        if inode.kind == FileType::Symlink {
            return Ok(Access { write: false, ..wanted });
        }
        self.shared.identity.act_as(caller)?;
        let name = inode.proc_name();
        let may = |access| {
            let proc = &self.shared.proc;
            match rustix::fs::accessat(proc, &*name, access, AtFlags::EACCESS) {
                Ok(()) => Ok(true),
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY) => Ok(false),
                Err(errno) => Err(Status::from(errno)),
            }
        };
        Ok(Access {
            read: wanted.read && may(rustix::fs::Access::READ_OK)?,
            write: wanted.write && may(rustix::fs::Access::WRITE_OK)?,
            execute: wanted.execute && may(rustix::fs::Access::EXEC_OK)?,
        })
    }

    fn lookup(&self, caller: &Caller, directory: FileHandle, name: Name) -> Result<FileHandle> {
        let directory = self.directory(directory)?;
        let name = self.name(directory.handle, name)?;
        self.shared.identity.act_as(caller)?;
        Ok(self.at(&directory, &name)?.handle)
    }

    fn parent(&self, caller: &Caller, directory: FileHandle) -> Result<FileHandle> {
        let directory = self.directory(directory)?;
        if directory.handle == self.root.handle {
            return Err(Status::NoEnt);
        }
        self.shared.identity.act_as(caller)?;
        Ok(self.at(&directory, c"..")?.handle)
    }

    fn read_directory(
        &self,
        caller: &Caller,
        directory: FileHandle,
        after: u64,
        visit: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<bool> {
        let directory = self.directory(directory)?;
        self.shared.identity.act_as(caller)?;
        // A file of its own, since the place in it is its own; and so the caller's rights are checked.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory.place(), c".", flags, Mode::empty())?;
        if after != 0 {
            let kernel = after.checked_sub(COOKIE_ABOVE).ok_or(Status::BadCookie)?;
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(kernel))
                .map_err(|_| Status::BadCookie)?;
        }
        let mut buffer = [MaybeUninit::uninit(); ENTRIES_BUFFER_BYTES];
        let mut entries = RawDir::new(&file, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..")
                || self.is_hidden(directory.handle, name.to_bytes())
            {
                continue;
            }
            let visited = visit(Entry {
                name: name.to_bytes(),
                cookie: entry.next_entry_cookie().wrapping_add(COOKIE_ABOVE),
                file: &|| self.entry(file.as_fd(), name),
            });
            if visited.is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_link(&self, caller: &Caller, link: FileHandle) -> Result<Vec<u8>> {
        let inode = self.inode(link)?;
        if inode.kind != FileType::Symlink {
            return Err(Status::Inval);
        }
        self.shared.identity.act_as(caller)?;
        Ok(rustix::fs::readlinkat(inode.place(), c"", Vec::new())?.into_bytes())
    }

    fn create(
        &self,
        caller: &Caller,
        directory: FileHandle,
        name: Name,
        kind: NewFile,
        mode: u32,
    ) -> Result<(FileHandle, Changed)> {
        let directory = self.directory(directory)?;
        let name = self.new_name(directory.handle, name)?;
        self.shared.identity.act_as(caller)?;
        let (made, changed) = self.change_names(&directory, || {
            self.make(directory.place(), &name, kind, mode)?;
            self.at(&directory, &name)
        })?;
        self.settle(&directory)?;
        Ok((made.handle, changed))
    }

    fn remove(&self, caller: &Caller, directory: FileHandle, name: Name) -> Result<Changed> {
        let directory = self.directory(directory)?;
        let name = self.name(directory.handle, name)?;
        self.shared.identity.act_as(caller)?;
        let (gone, changed) = self.change_names(&directory, || {
            let gone = self.at(&directory, &name)?;
            let flags = match gone.kind {
                FileType::Directory => AtFlags::REMOVEDIR,
                _ => AtFlags::empty(),
            };
            rustix::fs::unlinkat(directory.place(), &*name, flags)?;
            Ok(gone)
        })?;
        self.lost_a_name(gone)?;
        self.settle(&directory)?;
        Ok(changed)
    }

    fn rename(
        &self,
        caller: &Caller,
        from: (FileHandle, Name),
        to: (FileHandle, Name),
    ) -> Result<(Changed, Changed)> {
        let (source, target) = (self.directory(from.0)?, self.directory(to.0)?);
        let (old, new) = (self.name(from.0, from.1)?, self.new_name(to.0, to.1)?);
        self.shared.identity.act_as(caller)?;
        let moved = self.at(&source, &old)?;
        let replaced = self.at(&target, &new).ok();
        if replaced.as_ref().is_some_and(|replaced| replaced.handle == moved.handle) {
            // Two names of one file: there is nothing to do.
            let now = |inode: &Inode| {
                self.change_number(inode).map(|now| Changed { before: now, after: now })
            };
            return Ok((now(&source)?, now(&target)?));
        }
        let rename = || {
            rustix::fs::renameat(source.place(), &*old, target.place(), &*new).map_err(|errno| {
                match errno {
                    // Of kinds that don't go together.
                    Errno::ISDIR | Errno::NOTDIR => Status::Exist,
                    _ => errno.into(),
                }
            })
        };
        let (source_changed, target_changed) = if source.handle == target.handle {
            let ((), changed) = self.change_names(&source, rename)?;
            (changed, changed)
        } else if source.handle.as_bytes() < target.handle.as_bytes() {
            let (((), inner), outer) =
                self.change_names(&source, || self.change_names(&target, rename))?;
            (outer, inner)
        } else {
            let (((), inner), outer) =
                self.change_names(&target, || self.change_names(&source, rename))?;
            (inner, outer)
        };
        moved.has_changed();
        replaced.map_or(Ok(()), |gone| self.lost_a_name(gone))?;
        self.settle(&source)?;
        if source.handle != target.handle {
            self.settle(&target)?;
        }
        Ok((source_changed, target_changed))
    }

    fn link(
        &self,
        caller: &Caller,
        file: FileHandle,
        directory: FileHandle,
        name: Name,
    ) -> Result<Changed> {
        let (file, directory) = (self.inode(file)?, self.directory(directory)?);
        let name = self.new_name(directory.handle, name)?;
        self.shared.identity.act_as(caller)?;
        let ((), changed) = self.change_names(&directory, || {
            rustix::fs::linkat(
                &self.shared.proc,
                &*file.proc_name(),
                directory.place(),
                &*name,
                AtFlags::SYMLINK_FOLLOW,
            )?;
            file.has_changed();
            Ok(())
        })?;
        self.settle(&directory)?;
        Ok(changed)
    }

    fn set(&self, caller: &Caller, file: FileHandle, changes: &Change) -> Result<()> {
        let inode = self.inode(file)?;
        self.shared.identity.act_as(caller)?;
        file::set(&self.shared, &inode, changes)?;
        inode.has_changed();
        self.settle_file(&inode)
    }

    fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    fn xattr(&self, caller: &Caller, file: FileHandle, name: XattrName) -> Result<Vec<u8>> {
        let inode = self.inode(file)?;
        self.shared.identity.act_as(caller)?;
        xattr::get(&inode, name)
    }

    fn xattr_names(&self, caller: &Caller, file: FileHandle) -> Result<Vec<Vec<u8>>> {
        let inode = self.inode(file)?;
        self.shared.identity.act_as(caller)?;
        xattr::names(&inode)
    }

    fn set_xattr(
        &self,
        caller: &Caller,
        file: FileHandle,
        name: XattrName,
        value: &[u8],
        when: SetXattr,
    ) -> Result<Changed> {
        self.change_file(caller, file, |inode| xattr::set(inode, name, value, when))
    }

    fn remove_xattr(&self, caller: &Caller, file: FileHandle, name: XattrName) -> Result<Changed> {
        self.change_file(caller, file, |inode| xattr::remove(inode, name))
    }

    fn copy(
        &self,
        caller: &Caller,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
    ) -> Result<u64> {
        let (source, target) = (self.regular(from.0)?, self.regular(to.0)?);
        let files = (source.reader(&self.shared)?, target.writer(&self.shared)?);
        self.shared.identity.act_as(caller)?;
        let copied = copy::copy(files, from.1, to.1, length)?;
        target.has_changed();
        Ok(copied)
    }

    fn clone_range(
        &self,
        caller: &Caller,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
    ) -> Result<()> {
        let (source, target) = (self.regular(from.0)?, self.regular(to.0)?);
        let files = (source.reader(&self.shared)?, target.writer(&self.shared)?);
        self.shared.identity.act_as(caller)?;
        copy::clone_range(files, from.1, to.1, length)?;
        target.has_changed();
        self.settle_file(&target)
    }

    fn open(&self, file: FileHandle) -> Result<Arc<dyn OpenFile>> {
        Ok(Arc::new(file::Opened::new(self.shared.clone(), self.regular(file)?)))
    }

    fn write_verifier(&self) -> u64 {
        self.shared.write_verifier()
    }

    fn remembered(&self) -> Vec<(Box<[u8]>, Claims)> {
        self.records.remembered()
    }

    fn remember(&self, owner: &[u8], claims: Claims) -> Result<()> {
        self.shared.identity.act_as_server()?;
        self.records.remember(owner, claims)
    }

    fn forget(&self, owners: &[&[u8]]) -> Result<()> {
        self.shared.identity.act_as_server()?;
        self.records.forget(owners)
    }
}
