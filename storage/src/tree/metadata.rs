//! Owner, mode, times and extended attributes: reading them at the source, setting them at the
//! target, and finding out what was kept.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use volferry_protocol::tree::fidelity::FidelityClass;
use volferry_protocol::tree::record::{
    MODE_MASK, Metadata, Time, XATTR_VALUE_LEN_MAX, XATTRS_LEN_MAX, Xattr, XattrKind,
};

/// Setuid and setgid.
const OWNER_BITS: u32 = 0o6000;

/// The attribute that an entry hands down to what is created in it.
pub(super) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// What an operation on metadata works on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Handle<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// An entry that is not opened, since opening may do anything: a name in a directory. It is
    /// never followed.
    Name(BorrowedFd<'a>, &'a [u8]),
}

impl Handle<'_> {
    /// The entry as a path, for calls that know no other way. The last component is not followed by
    /// the calls that this is given to.
    fn proc_path(&self) -> Vec<u8> {
        match self {
            Self::Open(fd) => format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes(),
            Self::Name(directory, name) => {
                let directory = format!("/proc/self/fd/{}/", directory.as_raw_fd());
                [directory.as_bytes(), name].concat()
            }
        }
    }

    fn list_xattrs(&self, names: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::flistxattr(fd, names),
            Self::Name(..) => rustix::fs::llistxattr(self.proc_path(), names),
        }
    }

    fn get_xattr(&self, name: &[u8], value: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fgetxattr(fd, name, value),
            Self::Name(..) => rustix::fs::lgetxattr(self.proc_path(), name, value),
        }
    }

    fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Name(..) => {
                rustix::fs::lsetxattr(self.proc_path(), name, value, XattrFlags::empty())
            }
        }
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Self::Name(..) => rustix::fs::lremovexattr(self.proc_path(), name),
        }
    }

    fn stat(&self) -> Result<Stat, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fstat(fd),
            Self::Name(directory, name) => {
                rustix::fs::statat(directory, *name, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    fn chown(&self, uid: Option<Uid>, gid: Option<Gid>) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fchown(fd, uid, gid),
            Self::Name(directory, name) => {
                rustix::fs::chownat(directory, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    /// Before Linux 6.6 there is no call that sets the mode of a name without following it, so it is
    /// opened as a mere place, and reached by the way through /proc, which leads to just that.
    fn chmod(&self, mode: Mode) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fchmod(fd, mode),
            Self::Name(directory, name) => {
                use rustix::fs::OFlags;
                let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let place = rustix::fs::openat(directory, *name, place, Mode::empty())?;
                let path = Handle::Open(place.as_fd()).proc_path();
                rustix::fs::chmodat(CWD, path, mode, AtFlags::empty())
            }
        }
    }

    fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::futimens(fd, times),
            Self::Name(directory, name) => {
                rustix::fs::utimensat(directory, *name, times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }
}

/// The metadata that `stat` tells of.
pub(super) fn of_stat(stat: &Stat) -> Metadata {
    Metadata {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode & MODE_MASK,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: mtime(stat),
        xattrs: Vec::new(),
    }
}

/// When the entry was written last.
pub(super) fn mtime(stat: &Stat) -> Time {
    time(stat.st_mtime, stat.st_mtime_nsec)
}

/// When anything of the entry changed last.
pub(super) fn ctime(stat: &Stat) -> Time {
    time(stat.st_ctime, stat.st_ctime_nsec)
}

fn time(seconds: i64, nanoseconds: impl TryInto<u32>) -> Time {
    Time {
        seconds,
        nanoseconds: nanoseconds.try_into().unwrap_or(0),
    }
}

/// Reads the extended attributes that travel, in the order of their names, and calls `lost` for
/// each class of which something could not be read.
pub(super) fn read_xattrs(
    handle: Handle<'_>,
    selinux: bool,
    mut lost: impl FnMut(FidelityClass),
) -> io::Result<Vec<Xattr>> {
    let mut few = [0; 512];
    let mut many;
    let names = match handle.list_xattrs(&mut few) {
        Ok(len) => few.get(..len).unwrap_or_default(),
        Err(Errno::RANGE) => {
            many = vec![0; XATTR_VALUE_LEN_MAX];
            let len = handle.list_xattrs(&mut many)?;
            many.get(..len).unwrap_or_default()
        }
        // A filesystem without attributes has none.
        Err(Errno::OPNOTSUPP | Errno::NODATA) => return Ok(Vec::new()),
        Err(Errno::ACCESS | Errno::PERM | Errno::TOOBIG) => {
            lost(FidelityClass::Xattrs);
            return Ok(Vec::new());
        }
        Err(errno) => return Err(errno.into()),
    };
    let mut xattrs = Vec::new();
    let mut bytes = 0;
    for name in names.split(|byte| *byte == 0) {
        let Some(class) = class_of(name, selinux) else {
            continue;
        };
        match read_value(handle, name) {
            Ok(value) => {
                bytes += name.len() + value.len();
                if bytes > XATTRS_LEN_MAX {
                    lost(FidelityClass::Xattrs);
                    return Ok(Vec::new());
                }
                let name = name.to_vec();
                xattrs.push(Xattr { name, value });
            }
            Err(Errno::NODATA) => {} // it went in between
            Err(Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP | Errno::TOOBIG) => lost(class),
            Err(errno) => return Err(errno.into()),
        }
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// The class of an attribute that travels on these terms.
fn class_of(name: &[u8], selinux: bool) -> Option<FidelityClass> {
    match XattrKind::of(name)? {
        XattrKind::Plain => Some(FidelityClass::Xattrs),
        XattrKind::Acl => Some(FidelityClass::Acls),
        XattrKind::Label => selinux.then_some(FidelityClass::Labels),
    }
}

fn read_value(handle: Handle<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 256];
    match handle.get_xattr(name, &mut small) {
        Ok(len) => return Ok(small.get(..len).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut value = vec![0; XATTR_VALUE_LEN_MAX];
    let len = handle.get_xattr(name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

/// The owner may write.
const OWNER_WRITE: u32 = 0o200;

/// How metadata is put on an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Labels are set.
    pub(super) selinux: bool,
    /// The entry may bear attributes that it must not have.
    pub(super) is_dirty: bool,
    /// It is a symbolic link: those have no mode.
    pub(super) is_symlink: bool,
}

/// Gives an entry its metadata, and calls `lost` once for each class that it could not be given.
///
/// The order: the owner first, since a change of it takes setuid bits and capabilities away; then
/// attributes, which an owner without privileges may only set on what it may write; then the mode; then
/// access control lists, which repeat it; then the times, which everything before them changes. At the end the entry is looked at again: a filesystem may
/// say yes and do something else.
pub(super) fn adorn(
    handle: Handle<'_>,
    wanted: &Metadata,
    terms: Terms,
    mut lost: impl FnMut(FidelityClass),
) -> io::Result<()> {
    let before = handle.stat()?;
    let owner_fits = set_owner(handle, wanted, &before)?;
    // On somebody else's file these bits would give away what they were never meant to.
    let mode = match owner_fits {
        true => wanted.mode,
        false => wanted.mode & !OWNER_BITS,
    };
    let mut mode_before = before.st_mode & MODE_MASK;
    let sets_some = terms.is_dirty || !wanted.xattrs.is_empty();
    if sets_some && !terms.is_symlink && mode_before & OWNER_WRITE == 0 {
        let writable = Mode::from_raw_mode(mode_before | OWNER_WRITE);
        if handle.chmod(writable).is_ok() {
            mode_before |= OWNER_WRITE;
        }
    }
    if terms.is_dirty {
        remove_xattrs(handle, wanted, terms, &mut lost)?;
    }
    let is_acl = |class| class == FidelityClass::Acls;
    set_xattrs(handle, wanted, terms, |class| !is_acl(class), &mut lost)?;
    let owner_changed = before.st_uid != wanted.uid || before.st_gid != wanted.gid;
    if !terms.is_symlink && (mode_before != mode || owner_changed) {
        match handle.chmod(Mode::from_raw_mode(mode)) {
            // Whether it has the mode is seen below.
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    set_xattrs(handle, wanted, terms, is_acl, &mut lost)?;
    let times = Timestamps {
        last_access: timespec(wanted.atime),
        last_modification: timespec(wanted.mtime),
    };
    match handle.set_times(&times) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::OVERFLOW) => {}
        Err(errno) => return Err(errno.into()),
    }
    let after = handle.stat()?;
    if after.st_uid != wanted.uid || after.st_gid != wanted.gid {
        lost(FidelityClass::Ownership);
    }
    if !terms.is_symlink && after.st_mode & MODE_MASK != mode {
        lost(FidelityClass::Modes);
    }
    if mtime(&after) != wanted.mtime {
        lost(FidelityClass::Times);
    }
    Ok(())
}

/// Whether the entry has the owner and the group that it should have.
fn set_owner(handle: Handle<'_>, wanted: &Metadata, before: &Stat) -> io::Result<bool> {
    let uid = (before.st_uid != wanted.uid).then(|| Uid::from_raw(wanted.uid));
    let gid = (before.st_gid != wanted.gid).then(|| Gid::from_raw(wanted.gid));
    if uid.is_none() && gid.is_none() {
        return Ok(true);
    }
    match handle.chown(uid, gid) {
        Ok(()) => Ok(true),
        // Without privileges the group may still be one of this agent's.
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => {
            let group_fits = gid.is_none() || handle.chown(None, gid).is_ok();
            Ok(uid.is_none() && group_fits)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Removes what the entry bears and must not.
fn remove_xattrs(
    handle: Handle<'_>,
    wanted: &Metadata,
    terms: Terms,
    mut lost: impl FnMut(FidelityClass),
) -> io::Result<()> {
    for present in read_xattrs(handle, terms.selinux, |_| {})? {
        if wanted.xattrs.iter().any(|xattr| xattr.name == present.name) {
            continue;
        }
        // What can't be removed would make the entry another one.
        match handle.remove_xattr(&present.name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {
                class_of(&present.name, terms.selinux).map(&mut lost);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Sets the attributes whose class is one of `these`.
fn set_xattrs(
    handle: Handle<'_>,
    wanted: &Metadata,
    terms: Terms,
    these: impl Fn(FidelityClass) -> bool,
    mut lost: impl FnMut(FidelityClass),
) -> io::Result<()> {
    let mut lost_classes: Vec<FidelityClass> = Vec::new();
    for Xattr { name, value } in &wanted.xattrs {
        let Some(class) = class_of(name, terms.selinux).filter(|class| these(*class)) else {
            continue;
        };
        match handle.set_xattr(name, value) {
            Ok(()) => {}
            // A filesystem may have too little room for one entry's attributes, and say that in
            // words that mean a full disk. A disk that is full will say it again soon.
            Err(
                Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::ACCESS
                | Errno::TOOBIG
                | Errno::RANGE
                | Errno::NOSPC
                | Errno::INVAL,
            ) => {
                if !lost_classes.contains(&class) {
                    lost_classes.push(class);
                    lost(class);
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Takes from a directory what it would hand down to new entries, and lets this agent in. Best
/// effort: what it should be is set at the end.
pub(super) fn open_up(directory: BorrowedFd<'_>) {
    let handle = Handle::Open(directory);
    let _none_before = handle.remove_xattr(DEFAULT_ACL);
    if let Ok(stat) = handle.stat()
        && stat.st_mode & 0o700 != 0o700
    {
        let _refused = handle.chmod(Mode::from_raw_mode(stat.st_mode & MODE_MASK | 0o700));
    }
}

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    }
}
