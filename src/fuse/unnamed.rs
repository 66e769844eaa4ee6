//! TMPFILE: files without a name, which linkat(2) may give one.

use super::abi::{CreateIn, InHeader};
use super::answers::decode;
use super::change::{answer_created, creator};
use super::device::Reply;
use super::front::Front;

use crate::volume::Creation;

impl Front {
    pub(super) fn create_unnamed(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let made = decode::<CreateIn>(arguments).and_then(|(create, _)| {
            let flags = create.flags as i32;
            let how = Creation {
                mode: create.mode & 0o7777,
                exclusive: flags & libc::O_EXCL != 0,
                read: flags & libc::O_ACCMODE != libc::O_WRONLY,
            };
            let caller = creator(&self.volume, header, &create);
            let made = self.volume.create_unnamed(header.user(), header.nodeid, &caller, how)?;
            Ok((flags, made))
        });
        match made {
            Ok((flags, (entry, handle))) => {
                if !answer_created(&entry, handle, flags, reply) {
                    // The kernel knows neither the handle nor the lookup, and will give up neither.
                    self.volume.engine.release(handle);
                    self.volume.forget(entry.id, 1);
                }
            }
            Err(errno) => reply.error(errno),
        }
    }
}
