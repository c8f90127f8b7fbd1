//! Unix sockets: a listening one with a file that only its owner's processes may open.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use crate::socket::BACKLOG;

/// Who may connect: processes of the target's user. Whoever else gets there has to prove its name all the same.
const MODE: u32 = 0o600;

/// A listening socket. Its file goes when it is dropped.
#[derive(Debug)]
pub(crate) struct LocalPort {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: what another has put in its place is not ours to remove.
    file: (u64, u64),
}

impl LocalPort {
    /// Listens at `path`. A socket that is there and at which nobody listens any more is replaced.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let address = address_of(path)?;
        remove_stale(path, &address)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Before there is a file, so that there is none with other permissions, even for a moment.
        let file = File::from(OwnedFd::from(socket));
        file.set_permissions(Permissions::from_mode(MODE))?;
        let socket = Socket::from(OwnedFd::from(file));
        socket.bind(&address)?;
        let file = identity(path)?;
        let listening = socket.listen(BACKLOG);
        let listener = listening.and_then(|()| UnixListener::from_std(socket.into()));
        let listener = listener.inspect_err(|_| drop(fs::remove_file(path)))?;
        let path = path.to_owned();
        Ok(Self {
            listener,
            path,
            file,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for LocalPort {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            // What stays is replaced by the next that listens here.
            let _removed = fs::remove_file(&self.path);
        }
    }
}

/// Connects to the socket at `path`.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let _fits = address_of(path)?;
    UnixStream::connect(path).await
}

fn address_of(path: &Path) -> io::Result<SockAddr> {
    SockAddr::unix(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => {
            let text = "the path is too long for a Unix socket, of 107 bytes at most; choose a shorter one";
            io::Error::new(io::ErrorKind::InvalidInput, text)
        }
        _ => error,
    })
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Removes what a target that was killed has left at `path`. Everything else stays, and is an error.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let in_use = |text: &str| io::Error::new(io::ErrorKind::AddrInUse, text.to_owned());
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(in_use(
                "a file is there that is no socket; choose another path",
            ));
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One whose backlog is full must not hold us up.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => Err(in_use("another process listens there; choose another path")),
    }
}
