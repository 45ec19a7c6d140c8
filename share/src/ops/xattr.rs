//! Extended attributes (RFC 8276).

use super::Cursor;
use crate::tree::{Changed, Result, XattrName};
use crate::wire::arguments42::SetXattr;
use crate::wire::status::Status;
use crate::wire::types::XATTR_BYTES_MAX;
use crate::wire::xdr::Encoder;

/// The cookie, the number of names, and whether that is all.
const LIST_AROUND_BYTES: usize = 16;

impl Cursor<'_> {
    pub(super) fn get_xattr(&mut self, name: &[u8], reply: &mut Encoder) -> Result<()> {
        let file = self.current()?.file;
        reply.opaque(&self.export.tree.xattr(self.caller, file, XattrName::new(name)?)?);
        Ok(())
    }

    pub(super) fn set_xattr(
        &mut self,
        when: SetXattr,
        name: &[u8],
        value: &[u8],
        reply: &mut Encoder,
    ) -> Result<()> {
        let (file, name) = (self.current()?.file, XattrName::new(name)?);
        if value.len() > XATTR_BYTES_MAX {
            return Err(Status::Xattr2Big);
        }
        let changed = self.export.tree.set_xattr(self.caller, file, name, value, when)?;
        encode_file_changed(&changed, reply);
        Ok(())
    }

    pub(super) fn remove_xattr(&mut self, name: &[u8], reply: &mut Encoder) -> Result<()> {
        let (file, name) = (self.current()?.file, XattrName::new(name)?);
        encode_file_changed(&self.export.tree.remove_xattr(self.caller, file, name)?, reply);
        Ok(())
    }

    /// A cookie is how many names were told before.
    pub(super) fn list_xattrs(
        &mut self,
        cookie: u64,
        reply_bytes_max: u32,
        reply: &mut Encoder,
    ) -> Result<()> {
        let names = self.export.tree.xattr_names(self.caller, self.current()?.file)?;
        let told = usize::try_from(cookie).ok().filter(|&told| told <= names.len());
        let told = told.ok_or(Status::BadCookie)?;
        let most = (reply_bytes_max as usize).min(self.room(reply));
        let most = most.checked_sub(LIST_AROUND_BYTES).ok_or(Status::TooSmall)?;
        let next_at = reply.mark();
        reply.u64(0);
        let count_at = reply.mark();
        reply.u32(0);
        let start = reply.mark();
        let mut count = 0;
        for name in &names[told..] {
            let before = reply.mark();
            reply.opaque(name);
            if reply.since(start) > most {
                reply.take_back(before);
                break;
            }
            count += 1;
        }
        let next = told + count as usize;
        if count == 0 && next < names.len() {
            return Err(Status::TooSmall);
        }
        reply.patch_u64(next_at, next as u64);
        reply.patch_u32(count_at, count);
        reply.bool(next == names.len());
        Ok(())
    }
}

/// A write may have been between: a client must not take what it has for what is there.
fn encode_file_changed(changed: &Changed, reply: &mut Encoder) {
    reply.bool(false);
    reply.u64(changed.before);
    reply.u64(changed.after);
}
