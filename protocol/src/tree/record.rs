//! What a pack holds: records, one after the other, each with all that its entry is.
//!
//! A record names its entry within the directory of the last [`Record::Enter`] before it in the
//! same pack, so that a pack can be applied without any other. docs/protocol.md is the normative
//! text; `tests/golden.rs` pins the bytes. Numbers are big-endian, and each record starts with its
//! kind:
//!
//! ```text
//! enter      1  path: 4, bytes
//! directory  2  metadata                                     of the directory that was entered
//! file       3  entry, stamp: 16, digest: 32, size: 4, zero map, data
//!                                                            its content in one piece
//! large file 4  entry, file id: 8, size: 8, digest: 32       its content came, or comes, in pieces
//! symlink    5  entry, target: 4, bytes
//! fifo       6  entry
//! socket     7  entry
//! character  8  entry, major: 4, minor: 4
//! block      9  entry, major: 4, minor: 4
//! link      10  name: 2, bytes; group: 8                     another name of an entry
//! forget    11  file id: 8                                   pieces of it mean nothing any more
//! offer     12  name: 2, bytes; size: 8, mtime: 8 + 4, stamp: 16
//!                                                            a file that the target may hold
//! keep      13  entry, size: 8, digest: 32, data bytes: 8, voucher: 32
//!                                                            its content is in its place
//!
//! entry      name: 2, bytes; group: 8 (0 = no other name); metadata
//! metadata   uid: 4, gid: 4, mode: 4, atime: 8 + 4, mtime: 8 + 4, count: 2, count × xattr
//! xattr      name: 1, bytes; value: 4, bytes
//! ```

use super::offer::{Offer, Stamp, Voucher};
use super::path::{BadName, Name, TreePath};
use crate::codec::{Reader, Truncated};
use crate::digest::Digest;
use crate::zero_map::{self, ZeroMap};

/// The largest file whose content travels in its record: several fit a pack, and the last one that
/// doesn't leaves not much of it empty.
pub const INLINE_SIZE_MAX: u32 = 256 << 10;

/// The longest value of an extended attribute: what Linux allows.
pub const XATTR_VALUE_LEN_MAX: usize = 64 << 10;

/// The most bytes of extended attributes of one entry, names included: with a long path and a
/// content they still fit a pack.
pub const XATTRS_LEN_MAX: usize = 384 << 10;

/// The longest target of a symbolic link: what Linux allows.
pub const SYMLINK_LEN_MAX: usize = 4095;

/// Permission bits with setuid, setgid and sticky.
pub const MODE_MASK: u32 = 0o7777;

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC; before it when negative.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanoseconds: u32,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Its whole name, such as `user.comment`.
    pub name: Vec<u8>,
    /// Its value, as the kernel has it.
    pub value: Vec<u8>,
}

/// The kinds of extended attributes that travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrKind {
    /// `user.*`, `trusted.*` and `security.*`, file capabilities among them.
    Plain,
    /// A POSIX access control list.
    Acl,
    /// An SELinux label.
    Label,
}

impl XattrKind {
    /// The kind of the attribute `name`; `None` for one that does not travel.
    #[must_use]
    pub fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"security.selinux" => Some(Self::Label),
            b"system.posix_acl_access" | b"system.posix_acl_default" => Some(Self::Acl),
            _ => {
                let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
                let travels = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
                let is_plain = prefixes.iter().any(|prefix| travels(prefix));
                (is_plain && name.len() <= 255 && !name.contains(&0)).then_some(Self::Plain)
            }
        }
    }
}

/// What an entry is besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The bits of [`MODE_MASK`].
    pub mode: u32,
    /// Last access.
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes in the order of their names.
    pub xattrs: Vec<Xattr>,
}

/// A name of its directory, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name.
    pub name: Name<'a>,
    /// The number under which [`Record::Link`] finds it; 0 when it has no other name.
    pub group: u64,
    /// Its metadata.
    pub metadata: Metadata,
}

/// Which device a device node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device of the driver.
    pub minor: u32,
}

/// What an entry holds, for entries without data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Special<'a> {
    /// A symbolic link to these bytes.
    Symlink(&'a [u8]),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Character(DeviceNumber),
    /// A block device.
    Block(DeviceNumber),
}

/// One record of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time lives, for a moment"
)]
pub enum Record<'a> {
    /// The records behind it are of this directory.
    Enter(TreePath),
    /// The directory that was entered has this metadata.
    Directory(Metadata),
    /// A regular file with its content.
    File {
        /// Its name and metadata.
        entry: Entry<'a>,
        /// Which state of the file it is.
        stamp: Stamp,
        /// The plain digest of its content.
        digest: Digest,
        /// Which of its blocks hold only zeros, and its size.
        zero_map: ZeroMap,
        /// Its other blocks, in order.
        data: &'a [u8],
    },
    /// A regular file whose content comes in pieces.
    LargeFile {
        /// Its name and metadata.
        entry: Entry<'a>,
        /// What its pieces bear.
        file: u64,
        /// Its size in bytes.
        size: u64,
        /// The plain digest of its content.
        digest: Digest,
    },
    /// An entry without data.
    Special {
        /// Its name and metadata.
        entry: Entry<'a>,
        /// What it is.
        special: Special<'a>,
    },
    /// Another name of an entry.
    Link {
        /// The name.
        name: Name<'a>,
        /// The entry's number.
        group: u64,
    },
    /// A file whose pieces came, or come, for nothing: it changed while it was read.
    Forget {
        /// What its pieces bear.
        file: u64,
    },
    /// A regular file that the target may hold.
    Offer(Offer<'a>),
    /// A regular file that the target holds, in its place.
    Keep {
        /// Its name and metadata.
        entry: Entry<'a>,
        /// Its size in bytes.
        size: u64,
        /// The plain digest of its content.
        digest: Digest,
        /// Bytes in blocks that hold data.
        data_bytes: u64,
        /// What the target's answer bore.
        voucher: Voucher,
    },
}

const ENTER: u8 = 1;
const DIRECTORY: u8 = 2;
const FILE: u8 = 3;
const LARGE_FILE: u8 = 4;
const SYMLINK: u8 = 5;
const FIFO: u8 = 6;
const SOCKET: u8 = 7;
const CHARACTER: u8 = 8;
const BLOCK: u8 = 9;
const LINK: u8 = 10;
const FORGET: u8 = 11;
const OFFER: u8 = 12;
const KEEP: u8 = 13;

impl<'a> Record<'a> {
    /// Appends the wire form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Enter(path) => {
                out.push(ENTER);
                put_long(out, path.as_bytes());
            }
            Self::Directory(metadata) => {
                out.push(DIRECTORY);
                metadata.encode(out);
            }
            Self::File {
                entry,
                stamp,
                digest,
                zero_map,
                data,
            } => {
                out.push(FILE);
                entry.encode(out);
                out.extend(stamp.0);
                out.extend(digest.0);
                out.extend(zero_map.chunk_len().to_be_bytes());
                zero_map.encode(out);
                out.extend_from_slice(data);
            }
            Self::LargeFile {
                entry,
                file,
                size,
                digest,
            } => {
                out.push(LARGE_FILE);
                entry.encode(out);
                out.extend(file.to_be_bytes());
                out.extend(size.to_be_bytes());
                out.extend(digest.0);
            }
            Self::Special { entry, special } => encode_special(entry, special, out),
            Self::Link { name, group } => {
                out.push(LINK);
                put_name(out, *name);
                out.extend(group.to_be_bytes());
            }
            Self::Forget { file } => {
                out.push(FORGET);
                out.extend(file.to_be_bytes());
            }
            Self::Offer(offer) => {
                out.push(OFFER);
                put_name(out, offer.name);
                out.extend(offer.size.to_be_bytes());
                offer.mtime.encode(out);
                out.extend(offer.stamp.0);
            }
            Self::Keep {
                entry,
                size,
                digest,
                data_bytes,
                voucher,
            } => {
                out.push(KEEP);
                entry.encode(out);
                out.extend(size.to_be_bytes());
                out.extend(digest.0);
                out.extend(data_bytes.to_be_bytes());
                out.extend(voucher.0.0);
            }
        }
    }

    /// Takes the next record from a pack.
    ///
    /// # Errors
    /// When the bytes are no record.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, RecordError> {
        let kind = reader.u8()?;
        Ok(match kind {
            ENTER => Self::Enter(TreePath::new(take_long(
                reader,
                super::path::PATH_LEN_MAX,
            )?)?),
            DIRECTORY => Self::Directory(Metadata::decode(reader)?),
            FILE => decode_file(reader)?,
            LARGE_FILE => Self::LargeFile {
                entry: Entry::decode(reader)?,
                file: reader.u64()?,
                size: reader.u64()?,
                digest: Digest(reader.array()?),
            },
            SYMLINK | FIFO | SOCKET | CHARACTER | BLOCK => {
                let entry = Entry::decode(reader)?;
                let special = decode_special(kind, reader)?;
                Self::Special { entry, special }
            }
            LINK => {
                let name = take_name(reader)?;
                let group = reader.u64()?;
                if group == 0 {
                    return Err(RecordError::Group);
                }
                Self::Link { name, group }
            }
            FORGET => Self::Forget {
                file: reader.u64()?,
            },
            OFFER => Self::Offer(Offer {
                name: take_name(reader)?,
                size: reader.u64()?,
                mtime: Time::decode(reader)?,
                stamp: Stamp(reader.array()?),
            }),
            KEEP => Self::Keep {
                entry: Entry::decode(reader)?,
                size: reader.u64()?,
                digest: Digest(reader.array()?),
                data_bytes: reader.u64()?,
                voucher: Voucher(Digest(reader.array()?)),
            },
            other => return Err(RecordError::Kind(other)),
        })
    }
}

fn encode_special(entry: &Entry<'_>, special: &Special<'_>, out: &mut Vec<u8>) {
    let kind = match special {
        Special::Symlink(_) => SYMLINK,
        Special::Fifo => FIFO,
        Special::Socket => SOCKET,
        Special::Character(_) => CHARACTER,
        Special::Block(_) => BLOCK,
    };
    out.push(kind);
    entry.encode(out);
    match special {
        Special::Symlink(target) => put_long(out, target),
        Special::Fifo | Special::Socket => {}
        Special::Character(device) | Special::Block(device) => {
            out.extend(device.major.to_be_bytes());
            out.extend(device.minor.to_be_bytes());
        }
    }
}

fn decode_special<'a>(kind: u8, reader: &mut Reader<'a>) -> Result<Special<'a>, RecordError> {
    Ok(match kind {
        SYMLINK => {
            let target = take_long(reader, SYMLINK_LEN_MAX)?;
            if target.is_empty() || target.contains(&0) {
                return Err(RecordError::Symlink);
            }
            Special::Symlink(target)
        }
        FIFO => Special::Fifo,
        SOCKET => Special::Socket,
        _ => {
            let device = DeviceNumber {
                major: reader.u32()?,
                minor: reader.u32()?,
            };
            match kind {
                CHARACTER => Special::Character(device),
                _ => Special::Block(device),
            }
        }
    })
}

fn decode_file<'a>(reader: &mut Reader<'a>) -> Result<Record<'a>, RecordError> {
    let entry = Entry::decode(reader)?;
    let stamp = Stamp(reader.array()?);
    let digest = Digest(reader.array()?);
    let size = reader.u32()?;
    if size > INLINE_SIZE_MAX {
        return Err(RecordError::Size(size));
    }
    let map = reader.bytes(zero_map::encoded_len(size))?;
    let zero_map = ZeroMap::decode(map, size).ok_or(RecordError::ZeroMap)?;
    let data = reader.bytes(zero_map.data_len() as usize)?;
    Ok(Record::File {
        entry,
        stamp,
        digest,
        zero_map,
        data,
    })
}

impl<'a> Entry<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        put_name(out, self.name);
        out.extend(self.group.to_be_bytes());
        self.metadata.encode(out);
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, RecordError> {
        Ok(Self {
            name: take_name(reader)?,
            group: reader.u64()?,
            metadata: Metadata::decode(reader)?,
        })
    }
}

impl Time {
    fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.seconds.to_be_bytes());
        out.extend(self.nanoseconds.to_be_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let time = Self {
            seconds: reader.array().map(i64::from_be_bytes)?,
            nanoseconds: reader.u32()?,
        };
        match time.nanoseconds {
            0..1_000_000_000 => Ok(time),
            _ => Err(RecordError::Time),
        }
    }
}

impl Metadata {
    /// Appends the wire form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.uid, self.gid, self.mode] {
            out.extend(number.to_be_bytes());
        }
        for time in [self.atime, self.mtime] {
            time.encode(out);
        }
        let count = u16::try_from(self.xattrs.len()).unwrap_or(u16::MAX);
        out.extend(count.to_be_bytes());
        for xattr in self.xattrs.iter().take(usize::from(count)) {
            let name_len = u8::try_from(xattr.name.len()).unwrap_or(u8::MAX);
            out.push(name_len);
            out.extend(xattr.name.iter().take(usize::from(name_len)));
            put_long(out, &xattr.value);
        }
    }

    /// Takes the wire form.
    ///
    /// # Errors
    /// When it is none: a mode with other bits, a nanosecond too many, an attribute of a kind that
    /// does not travel, or attributes out of order.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let (uid, gid, mode) = (reader.u32()?, reader.u32()?, reader.u32()?);
        if mode & !MODE_MASK != 0 {
            return Err(RecordError::Mode(mode));
        }
        // To the kernel this number says: leave it as it is.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(RecordError::Owner);
        }
        let (atime, mtime) = (Time::decode(reader)?, Time::decode(reader)?);
        let count = reader.u16()?;
        let mut xattrs: Vec<Xattr> = Vec::new();
        for _ in 0..count {
            let name_len = usize::from(reader.u8()?);
            let name = reader.bytes(name_len)?.to_vec();
            let value = take_long(reader, XATTR_VALUE_LEN_MAX)?.to_vec();
            let is_next = xattrs.last().is_none_or(|last| last.name < name);
            if XattrKind::of(&name).is_none() || !is_next {
                return Err(RecordError::Xattr);
            }
            xattrs.push(Xattr { name, value });
        }
        Ok(Self {
            uid,
            gid,
            mode,
            atime,
            mtime,
            xattrs,
        })
    }

    /// Bytes of the wire form.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        const FIXED: usize = 38;
        let xattrs = self.xattrs.iter();
        let xattrs = xattrs.map(|xattr| {
            let len = xattr.name.len().saturating_add(xattr.value.len());
            len.saturating_add(5)
        });
        xattrs.fold(FIXED, usize::saturating_add)
    }
}

fn put_name(out: &mut Vec<u8>, name: Name<'_>) {
    let len = u16::try_from(name.as_bytes().len()).unwrap_or(u16::MAX);
    out.extend(len.to_be_bytes());
    out.extend(name.as_bytes());
}

fn take_name<'a>(reader: &mut Reader<'a>) -> Result<Name<'a>, RecordError> {
    let len = usize::from(reader.u16()?);
    Ok(Name::new(reader.bytes(len)?)?)
}

fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend(len.to_be_bytes());
    out.extend(bytes);
}

fn take_long<'a>(reader: &mut Reader<'a>, len_max: usize) -> Result<&'a [u8], RecordError> {
    let len = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
    if len > len_max {
        return Err(RecordError::TooLong { len, len_max });
    }
    Ok(reader.bytes(len)?)
}

/// Bytes of a peer that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The pack ends within the record.
    #[error("a record is cut short")]
    Truncated(#[from] Truncated),
    /// A kind that this version doesn't know.
    #[error("record kind {0} is not known")]
    Kind(u8),
    /// A name that leads elsewhere.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Bits that no mode has.
    #[error("{0:#o} is no mode")]
    Mode(u32),
    /// An owner or a group that nobody can be.
    #[error("an owner or a group has a number that nobody has")]
    Owner,
    /// More nanoseconds than a second has.
    #[error("a time has too many nanoseconds")]
    Time,
    /// An extended attribute that does not travel, or not in this place.
    #[error("an extended attribute is of a kind that does not travel, or out of order")]
    Xattr,
    /// The target of a symbolic link that can't be.
    #[error("a symbolic link leads nowhere at all")]
    Symlink,
    /// A content that should have come in pieces.
    #[error("{0} bytes of content are too many for a record")]
    Size(u32),
    /// A zero map that doesn't fit its file.
    #[error("the zero map of a file does not fit its size")]
    ZeroMap,
    /// A link to an entry without other names.
    #[error("a link has no group")]
    Group,
    /// A text that is longer than it can be.
    #[error("{len} bytes where at most {len_max} are allowed")]
    TooLong {
        /// What the record says.
        len: usize,
        /// What is allowed.
        len_max: usize,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn metadata() -> impl Strategy<Value = Metadata> {
        let time = (any::<i64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanoseconds)| Time {
            seconds,
            nanoseconds,
        });
        let prefix = prop::sample::select(vec!["user.", "trusted.", "security."]);
        let xattr = (
            prefix,
            "[a-z]{1,9}",
            prop::collection::vec(any::<u8>(), 0..40),
        )
            .prop_map(|(prefix, name, value)| Xattr {
                name: format!("{prefix}{name}").into(),
                value,
            });
        let xattrs = prop::collection::vec(xattr, 0..4).prop_map(|mut xattrs| {
            xattrs.sort();
            xattrs.dedup_by(|a, b| a.name == b.name);
            xattrs
        });
        (
            0..u32::MAX,
            0..u32::MAX,
            0..=MODE_MASK,
            time.clone(),
            time,
            xattrs,
        )
            .prop_map(|(uid, gid, mode, atime, mtime, xattrs)| Metadata {
                uid,
                gid,
                mode,
                atime,
                mtime,
                xattrs,
            })
    }

    proptest! {
        #[test]
        fn records_survive_the_wire(
            metadata in metadata(),
            name in prop::collection::vec(1u8..255, 1..255),
            content in prop::collection::vec(prop::sample::select(vec![0u8, 7]), 0..20_000),
            group in any::<u64>(),
            numbers in any::<(u64, u64, u32, u32)>(),
        ) {
            let name: Vec<u8> = name.into_iter().filter(|byte| *byte != b'/').collect();
            let Ok(name) = Name::new(&name) else { return Ok(()) };
            let entry = || Entry { name, group, metadata: metadata.clone() };
            let zero_map = ZeroMap::scan(&content);
            let data: Vec<u8> = zero_map.runs().filter(|run| !run.is_zero)
                .flat_map(|run| content[run.indices()].to_vec()).collect();
            let device = DeviceNumber { major: numbers.2, minor: numbers.3 };
            let digest = Digest([9; 32]);
            let stamp = Stamp([3; 16]);
            let special = |special| Record::Special { entry: entry(), special };
            let records = [
                Record::Enter(TreePath::ROOT),
                Record::Enter(TreePath::ROOT.join(name).unwrap()),
                Record::Directory(metadata.clone()),
                Record::File { entry: entry(), stamp, digest, zero_map, data: &data },
                Record::LargeFile { entry: entry(), file: numbers.0, size: numbers.1, digest },
                special(Special::Symlink(b"../../etc/passwd")),
                special(Special::Fifo),
                special(Special::Socket),
                special(Special::Character(device)),
                special(Special::Block(device)),
                Record::Link { name, group: group.max(1) },
                Record::Forget { file: numbers.0 },
                Record::Offer(Offer { name, size: numbers.0, mtime: metadata.mtime, stamp }),
                Record::Keep {
                    entry: entry(),
                    size: numbers.0,
                    digest,
                    data_bytes: numbers.1,
                    voucher: Voucher(Digest([6; 32])),
                },
            ];
            let mut pack = Vec::new();
            records.iter().for_each(|record| record.encode(&mut pack));
            let mut reader = Reader::new(&pack);
            for record in &records {
                prop_assert_eq!(&Record::decode(&mut reader).unwrap(), record);
            }
            prop_assert!(reader.is_empty());
            // Cut anywhere, it is refused, and never a panic.
            for cut in 0..pack.len().min(600) {
                let mut reader = Reader::new(&pack[..cut]);
                while Record::decode(&mut reader).is_ok() {}
            }
            let mut bytes = Vec::new();
            metadata.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), metadata.encoded_len());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = Reader::new(&bytes);
            while Record::decode(&mut reader).is_ok() {}
        }
    }

    #[test]
    fn attributes_of_other_kinds_do_not_travel() {
        for (name, kind) in [
            (&b"user.a"[..], Some(XattrKind::Plain)),
            (b"security.capability", Some(XattrKind::Plain)),
            (b"trusted.overlay.opaque", Some(XattrKind::Plain)),
            (b"security.selinux", Some(XattrKind::Label)),
            (b"system.posix_acl_default", Some(XattrKind::Acl)),
            (b"system.nfs4_acl", None),
            (b"user.", None),
            (b"user.\0", None),
            (b"btrfs.compression", None),
        ] {
            assert_eq!(XattrKind::of(name), kind);
        }
        let xattr = |name: &[u8]| Xattr {
            name: name.to_vec(),
            value: Vec::new(),
        };
        for xattrs in [
            vec![xattr(b"system.evil")],
            vec![xattr(b"user.b"), xattr(b"user.a")],
            vec![xattr(b"user.a"), xattr(b"user.a")],
        ] {
            let mut bytes = Vec::new();
            Metadata {
                xattrs,
                ..Metadata::default()
            }
            .encode(&mut bytes);
            let decoded = Metadata::decode(&mut Reader::new(&bytes));
            assert_eq!(decoded, Err(RecordError::Xattr));
        }
    }
}
