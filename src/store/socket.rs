//! `control.sock`: where the daemon that holds the directory is asked and told things, by its own user alone.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Store;
use super::layout::Layout;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

impl Store {
    /// Listens at `control.sock`, in place of one that a killed process has left. Blocks.
    ///
    /// # Errors
    /// When it cannot be made: a path of more than 107 bytes, or a file system that knows no sockets.
    pub fn listen(&self) -> io::Result<UnixListener> {
        let path = self.layout.control();
        // We hold the directory's lock, so nobody listens there.
        self.stop_listening()?;
        if !self.disk.is_in_place() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the cache directory was moved or removed"));
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Linux makes the file with the socket's own mode, so that nobody else ever gets in between.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(&SockAddr::unix(&path)?)?;
        rustix::fs::chmod(&path, Mode::RUSR | Mode::WUSR)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    /// Device and inode of what stands at `control.sock`; `None` when nothing does. Blocks.
    pub fn socket_id(&self) -> Option<(u64, u64)> {
        std::fs::symlink_metadata(self.layout.control()).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Removes the socket's file. Blocks.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn stop_listening(&self) -> io::Result<()> {
        // Another daemon may listen where the directory was.
        if !self.disk.is_in_place() {
            return Ok(());
        }
        match rustix::fs::unlink(self.layout.control()) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }
}

/// Whether larder has ever used this directory.
pub fn is_cache(path: &Path) -> bool {
    Layout::new(path).lock().exists()
}

/// Where a daemon that holds this cache directory listens.
pub fn control_path(cache: &Path) -> std::path::PathBuf {
    Layout::new(cache).control()
}
