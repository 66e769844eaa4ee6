//! Extended attributes: GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::abi::{
    GetXattrIn, GetXattrOut, InHeader, SETXATTR_ACL_KILL_SGID, SetXattrExt, SetXattrIn, decode,
    name,
};
use super::front::Front;
use super::reply::Reply;
use crate::error::{Errno, Result};
use crate::fs::XattrMode;
use crate::volume::{CAPABILITY_NAME, REQUEST_NAME, XattrAnswer};

/// The access control list that the mode is a part of.
const ACCESS_ACL_NAME: &str = "system.posix_acl_access";

/// What a SETXATTR sets.
#[derive(Debug, PartialEq, Eq)]
struct Setting<'a> {
    name: &'a OsStr,
    value: &'a [u8],
    flags: u32,
    kills_set_group_id: bool,
}

impl<'a> Setting<'a> {
    /// Decodes the arguments, which begin with the longer structure if `extended`. They must bring a name, and as many
    /// bytes as they claim.
    fn parse(arguments: &'a [u8], extended: bool) -> Result<Self> {
        let (set, rest) = decode::<SetXattrIn>(arguments)?;
        let (more, rest) = match extended {
            true => decode::<SetXattrExt>(rest)?,
            false => (SetXattrExt::default(), rest),
        };
        let end = rest.iter().position(|byte| *byte == 0).filter(|end| *end > 0);
        let end = end.ok_or(Errno::EINVAL)?;
        let value = &rest[end + 1..];
        if value.len() != set.size as usize {
            return Err(Errno::EINVAL);
        }
        let name = OsStr::from_bytes(&rest[..end]);
        // The kernel sets the flag for default ACLs, too, which change no mode.
        let kills = more.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0;
        let kills_set_group_id = kills && name == ACCESS_ACL_NAME;
        Ok(Self { name, value, flags: set.flags, kills_set_group_id })
    }
}

impl Front {
    /// Bytes before the name in a SETXATTR.
    pub(super) fn xattr_head_bytes(&self) -> usize {
        let more = if self.negotiated.extended_setxattr() { size_of::<SetXattrExt>() } else { 0 };
        size_of::<SetXattrIn>() + more
    }

    pub(super) fn set_xattr(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let id = header.nodeid;
        let setting = match Setting::parse(arguments, self.negotiated.extended_setxattr()) {
            Ok(setting) => setting,
            Err(errno) => return reply.error(errno),
        };
        let Setting { name, value, .. } = setting;
        if name == REQUEST_NAME {
            return self.volume.request(id, value, header.asker(), reply.when_done());
        }
        let set = match XattrMode::from_flags(setting.flags) {
            Ok(mode) if name == CAPABILITY_NAME => {
                return self.volume.set_capability(id, value, mode, reply.when_done());
            }
            mode => mode.and_then(|mode| self.volume.set_xattr(id, name, value, mode)),
        };
        let set = set.and_then(|()| match setting.kills_set_group_id {
            true => self.volume.drop_set_group_id(id),
            false => Ok(()),
        });
        reply.done(set);
    }

    pub(super) fn remove_xattr(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let id = header.nodeid;
        reply.done(name(arguments).and_then(|name| self.volume.remove_xattr(id, name)));
    }

    pub(super) fn get_xattr(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let id = header.nodeid;
        let asked = decode::<GetXattrIn>(arguments)
            .and_then(|(asked, rest)| Ok((asked.size, name(rest)?)))
            .and_then(|(size, name)| Ok((size, self.volume.xattr(id, name, size == 0)?)));
        match asked {
            Ok((size, XattrAnswer::Value(value))) => answer(Ok(value), size, reply),
            Ok((size, XattrAnswer::Wait)) => {
                let answer = Box::new(move |result| answer(result, size, reply));
                self.volume.wait(header.user(), id, answer);
            }
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn list_xattrs(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        match decode::<GetXattrIn>(arguments) {
            Ok((asked, _)) => {
                let names = self.volume.list_xattrs(header.nodeid, header.asker());
                answer(names, asked.size, reply);
            }
            Err(errno) => reply.error(errno),
        }
    }
}

/// Answers with a value, with its length when the client has no room for any (`size` 0), or with ERANGE.
fn answer(value: Result<Vec<u8>>, size: u32, reply: Reply) {
    match value {
        Ok(value) if size == 0 => {
            reply.result(Ok(GetXattrOut { size: value.len() as u32, padding: 0 }));
        }
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.bytes(&[&value]),
        Err(errno) => reply.error(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_as_long_as_they_say() {
        for extended in [false, true] {
            let head = if extended { vec![0; 12] } else { vec![0; 4] };
            let set = |size: u32, rest: &[u8]| [&size.to_ne_bytes(), &head[..], rest].concat();
            for (whole, arguments) in [
                (true, set(2, b"name\0xy")),
                (true, set(0, b"name\0")),
                (true, set(3, b"name\0a\0b")),
                (false, set(3, b"name\0xy")),
                (false, set(1, b"name\0xy")),
                (false, set(0, b"name")),
                (false, set(0, b"\0")),
                (false, set(u32::MAX, b"name\0")),
                (false, vec![0; 7]),
            ] {
                let parsed = Setting::parse(&arguments, extended);
                assert_eq!(parsed.is_ok(), whole, "{extended} {arguments:?}");
            }
        }
    }

    #[test]
    fn the_longer_head_says_whether_set_group_id_goes() {
        let default = "system.posix_acl_default";
        for (name, flags, kills) in [
            (ACCESS_ACL_NAME, 0_u32, false),
            (ACCESS_ACL_NAME, 1, true),
            (ACCESS_ACL_NAME, 2, false),
            (ACCESS_ACL_NAME, 3, true),
            (default, 1, false),
            ("user.x", 1, false),
        ] {
            let words = [2, 0, flags, 0].map(u32::to_ne_bytes).concat();
            let arguments = [&words[..], name.as_bytes(), b"\0xy"].concat();
            let parsed = Setting::parse(&arguments, true).unwrap();
            assert_eq!((parsed.name, parsed.value), (OsStr::new(name), &b"xy"[..]));
            assert_eq!(parsed.kills_set_group_id, kills);
        }
    }
}
