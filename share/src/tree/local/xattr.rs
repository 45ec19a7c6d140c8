//! Extended attributes of users, by the path of a file's place; the kernel asks for the caller's rights.

use super::super::{Result, XattrName};
use super::inodes::Inode;
use crate::wire::arguments42::SetXattr;
use crate::wire::types::XATTR_BYTES_MAX;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::ffi::CString;

/// Whether the file system of this file has them.
pub fn are_there(inode: &Inode) -> bool {
    !matches!(rustix::fs::getxattr(inode.path(), c"user.any", &mut [0; 1]), Err(Errno::OPNOTSUPP))
}

pub fn get(inode: &Inode, name: XattrName) -> Result<Vec<u8>> {
    let mut value = vec![0; XATTR_BYTES_MAX];
    let size_bytes = rustix::fs::getxattr(inode.path(), kernel_name(name), &mut value[..])?;
    value.truncate(size_bytes);
    Ok(value)
}

pub fn names(inode: &Inode) -> Result<Vec<Vec<u8>>> {
    let mut list = vec![0; XATTR_BYTES_MAX];
    let size_bytes = rustix::fs::listxattr(inode.path(), &mut list[..])?;
    let all = list[..size_bytes].split(|&byte| byte == 0);
    let of_users = all.filter_map(|name| name.strip_prefix(XattrName::PREFIX));
    Ok(of_users.filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

pub fn set(inode: &Inode, name: XattrName, value: &[u8], when: SetXattr) -> Result<()> {
    let flags = match when {
        SetXattr::Always => XattrFlags::empty(),
        SetXattr::Create => XattrFlags::CREATE,
        SetXattr::Replace => XattrFlags::REPLACE,
    };
    Ok(rustix::fs::setxattr(inode.path(), kernel_name(name), value, flags)?)
}

pub fn remove(inode: &Inode, name: XattrName) -> Result<()> {
    Ok(rustix::fs::removexattr(inode.path(), kernel_name(name))?)
}

fn kernel_name(name: XattrName) -> CString {
    let whole = [XattrName::PREFIX, name.as_bytes()].concat();
    CString::new(whole).expect("the name of an attribute has no NUL")
}
