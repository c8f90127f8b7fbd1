//! Names and paths: bytes, as the kernel has them, and never more than that.
//!
//! A name that came from a peer is hostile until it was checked. The checks are here, and a
//! [`Name`] or a [`TreePath`] can't be had without them.

use std::fmt;

/// The longest name, in bytes: what Linux filesystems hold.
pub const NAME_LEN_MAX: usize = 255;

/// The longest path, in bytes. Linux opens no path beyond 4096 bytes at once, but trees can be
/// deeper, and are opened in pieces. A path must fit a pack several times over.
pub const PATH_LEN_MAX: usize = 256 << 10;

/// One component of a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Takes `bytes` as a name.
    ///
    /// # Errors
    /// When they lead elsewhere than to an entry of one directory.
    pub fn new(bytes: &'a [u8]) -> Result<Self, BadName> {
        match bytes {
            b"" => Err(BadName::Empty),
            b"." | b".." => Err(BadName::Dots),
            _ if bytes.len() > NAME_LEN_MAX => Err(BadName::TooLong),
            _ if bytes.contains(&b'/') => Err(BadName::Slash),
            _ if bytes.contains(&0) => Err(BadName::Nul),
            _ => Ok(Self(bytes)),
        }
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", show(self.0))
    }
}

/// A path below the root of a tree, without a slash at either end. The root's is empty.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The path of the root itself.
    pub const ROOT: Self = Self(Vec::new());

    /// Takes `bytes` as a path.
    ///
    /// # Errors
    /// When it is too long, or one of its components is no name.
    pub fn new(bytes: &[u8]) -> Result<Self, BadName> {
        if bytes.len() > PATH_LEN_MAX {
            return Err(BadName::PathTooLong);
        }
        if !bytes.is_empty() {
            for component in bytes.split(|byte| *byte == b'/') {
                Name::new(component)?;
            }
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The path of the entry `name` in this directory.
    ///
    /// # Errors
    /// When it is too long.
    pub fn join(&self, name: Name<'_>) -> Result<Self, BadName> {
        let joined = join(&self.0, name.0);
        if joined.len() > PATH_LEN_MAX {
            return Err(BadName::PathTooLong);
        }
        Ok(Self(joined))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root's.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", show(&self.0))
    }
}

/// The bytes of `name` in the directory at `path`.
#[must_use]
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
    [path, separator, name].concat()
}

/// A path for people and logs: what is no text is escaped, so that no name can pretend to be
/// anything else, and long ones lose their middle.
#[must_use]
pub fn show(path: &[u8]) -> String {
    const SHOWN_MAX: usize = 400;
    const KEPT: usize = 190;
    if path.is_empty() {
        return ".".to_owned();
    }
    let (head, tail) = match path.split_at_checked(KEPT) {
        Some((head, rest)) if path.len() > SHOWN_MAX => {
            let from = rest.len().saturating_sub(KEPT);
            (head, rest.get(from..).unwrap_or_default())
        }
        _ => (path, &b""[..]),
    };
    let mut text = escape(head);
    if !tail.is_empty() {
        text.push_str(" … ");
        text.push_str(&escape(tail));
    }
    text
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() || char == '\\' {
                text.extend(char.escape_default());
            } else {
                text.push(char);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Why bytes are no name, or no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Nothing.
    #[error("a name is empty")]
    Empty,
    /// `.` or `..`: it leads out of its directory.
    #[error("a name is \".\" or \"..\"")]
    Dots,
    /// A slash within.
    #[error("a name holds a slash")]
    Slash,
    /// A byte that ends names.
    #[error("a name holds a zero byte")]
    Nul,
    /// More than [`NAME_LEN_MAX`] bytes.
    #[error("a name has more than {NAME_LEN_MAX} bytes")]
    TooLong,
    /// More than [`PATH_LEN_MAX`] bytes.
    #[error("a path has more than {PATH_LEN_MAX} bytes")]
    PathTooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        for (bytes, why) in [
            (&b""[..], BadName::Empty),
            (b".", BadName::Dots),
            (b"..", BadName::Dots),
            (b"a/b", BadName::Slash),
            (b"/", BadName::Slash),
            (b"a\0b", BadName::Nul),
            (&[b'x'; 256], BadName::TooLong),
        ] {
            assert_eq!(Name::new(bytes), Err(why));
        }
        for good in [&b"..."[..], b"-rf", b"#", b"\n", b"\xff\xfe", &[b'x'; 255]] {
            assert_eq!(Name::new(good).unwrap().as_bytes(), good);
        }
    }

    #[test]
    fn paths_stay_below_the_root() {
        for bad in [
            &b"/"[..],
            b"/etc",
            b"a/",
            b"a//b",
            b"a/../b",
            b"..",
            b"a/.",
            b"a/b\0",
        ] {
            assert!(TreePath::new(bad).is_err(), "{bad:?}");
        }
        assert!(TreePath::new(b"").unwrap().is_root());
        assert!(TreePath::new(b"a/.../-b/\xff").is_ok());
        let deep = TreePath::new(&b"d/".repeat(PATH_LEN_MAX / 2 - 1)[1..]);
        assert!(deep.is_err(), "it ends in a slash");
        let long = vec![b"x".repeat(100); PATH_LEN_MAX / 101 + 1].join(&b'/');
        assert_eq!(TreePath::new(&long), Err(BadName::PathTooLong));
    }

    #[test]
    fn no_name_can_pretend() {
        assert_eq!(show(b""), ".");
        assert_eq!(show(b"a\nb\x1b[2J\xff\\"), "a\\nb\\u{1b}[2J\\xff\\\\");
        assert!(show(&[b'x'; 9999]).len() < 500);
    }
}
