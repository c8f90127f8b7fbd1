//! The system calls that no safe crate offers. All `unsafe` of the project is here.

#![expect(
    unsafe_code,
    reason = "locks of open file descriptions, write-back of ranges, reads asked for at once, the state of the page cache, huge pages and the allocator's settings have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use volferry_protocol::geometry::ByteRange;

/// Takes the exclusive lock over all of `file`, without waiting.
///
/// The lock belongs to the open file description: it goes when the last descriptor of this very
/// opening is closed, not, as a classic POSIX lock would, when any descriptor of the file is. It
/// meets the byte locks that QEMU holds on its images.
///
/// # Errors
/// `EAGAIN` or `EACCES` when somebody else holds a lock; `ENOLCK`, `EOPNOTSUPP` or `EINVAL` where
/// the filesystem or kernel has no such locks.
#[expect(clippy::cast_possible_truncation, reason = "the constants are small")]
pub(crate) fn lock_whole_file(file: &File) -> io::Result<()> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0, // to the end, wherever it will be
        l_pid: 0, // must be zero for this kind of lock
    };
    // SAFETY: the descriptor is open, for `file` is borrowed, and `lock` outlives the call, which
    // only reads it.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    check(answer)
}

/// Asks the kernel to start writing the dirty pages of `range`, and doesn't wait for them.
///
/// # Errors
/// When the kernel can't start it.
pub(crate) fn start_writeback(file: &File, range: ByteRange) -> io::Result<()> {
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes the dirty pages of `range` and waits for them. Neither metadata nor the device's own
/// cache is flushed: this bounds memory, it makes nothing durable.
///
/// # Errors
/// When a page could not be written. The kernel reports such an error once, so the caller must
/// remember it.
pub(crate) fn wait_for_writeback(file: &File, range: ByteRange) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, range, flags)
}

fn sync_file_range(file: &File, range: ByteRange, flags: libc::c_uint) -> io::Result<()> {
    if range.is_empty() {
        return Ok(()); // a length of 0 would mean all that follows
    }
    let offset = signed(range.start())?;
    let len = signed(range.len())?;
    // SAFETY: the descriptor is open, for `file` is borrowed; the call takes no pointers.
    let answer = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) };
    check(answer)
}

fn signed(number: u64) -> io::Result<libc::off64_t> {
    libc::off64_t::try_from(number).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What huge pages are on the processors that we know. Where they are larger, memory is merely in
/// ordinary pages.
const HUGE_PAGE_LEN: usize = 2 << 20;

/// Memory of our own, zeroed, and taken from the system when it is first touched: in huge pages,
/// where the system has any to give.
struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is nothing but memory that is bound to no thread.
unsafe impl Send for Region {}
// SAFETY: a region that is shared gives no access to its memory; its parts do, each to its own.
unsafe impl Sync for Region {}

impl Region {
    fn new(len: usize) -> io::Result<Self> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a mapping of no file at a place that the system chooses touches no other memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let region = Self { start, len };
        // SAFETY: the range is the mapping just made; the advice changes nothing about its content.
        // Without huge pages it fails, and ordinary ones do.
        let _ = unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(region)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is the whole mapping, and no part of it is left, for each holds the region.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Bytes of memory that nobody else has.
pub(crate) struct Part {
    start: NonNull<u8>,
    len: usize,
    _region: Arc<Region>,
}

impl Part {
    /// Makes `count` parts of `len` bytes each. They lie one behind the other, the first at the start
    /// of a huge page and each at a multiple of `align` bytes, a power of two.
    ///
    /// # Errors
    /// When there is not so much room for addresses. Memory itself is not taken yet.
    pub(crate) fn make(count: usize, len: usize, align: usize) -> io::Result<Vec<Self>> {
        let stride = len.checked_next_multiple_of(align);
        let total = stride.and_then(|stride| stride.checked_mul(count)?.checked_add(HUGE_PAGE_LEN));
        let (Some(stride), Some(total)) = (stride, total) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let region = Arc::new(Region::new(total)?);
        let address = region.start.addr().get();
        let first = address.next_multiple_of(HUGE_PAGE_LEN) - address;
        let part = |number| {
            // SAFETY: `first` is below a huge page and `number` below `count`, so the part begins and
            // ends within the region.
            let start = unsafe { region.start.byte_add(first + number * stride) };
            Self {
                start,
                len,
                _region: Arc::clone(&region),
            }
        };
        Ok((0..count).map(part).collect())
    }
}

// SAFETY: a part is the only way to its memory, as a vector is to its own.
unsafe impl Send for Part {}
// SAFETY: as above.
unsafe impl Sync for Part {}

impl Deref for Part {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is mapped as long as the region is held, any bytes are valid, and as
        // parts don't overlap, who borrows this part mutably borrows all that leads to it.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Part {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this borrow is the only one.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// How many pages of `file` the page cache holds (cachestat(2)).
///
/// # Errors
/// `ENOSYS` before Linux 6.5; `EPERM` for a file that is neither ours nor may be written.
pub(crate) fn cached_pages(file: &File) -> io::Result<u64> {
    const SYS_CACHESTAT: libc::c_long = 451; // the C library has no name for it yet
    /// A length of 0 means all that follows.
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    #[derive(Default)]
    #[repr(C)]
    struct Pages {
        cached: u64,
        dirty: u64,
        under_writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let all = Range { offset: 0, len: 0 };
    let mut pages = Pages::default();
    let (number, descriptor, flags) = (SYS_CACHESTAT, file.as_raw_fd(), 0);
    let (range, room) = (&raw const all, &raw mut pages);
    // SAFETY: the call reads the range and writes the pages, and both outlive it.
    match unsafe { libc::syscall(number, descriptor, range, room, flags) } {
        0 => Ok(pages.cached),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file that is read from its beginning, together with others.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    file: &'a File,
    bytes: &'a mut [u8],
    outcome: io::Result<usize>,
}

impl<'a> Reading<'a> {
    /// Reads `file` into `bytes`, which are aligned as its filesystem wants it.
    pub(crate) fn new(file: &'a File, bytes: &'a mut [u8]) -> Self {
        // That is what it stays where the kernel doesn't say what became of it.
        let outcome = Err(io::ErrorKind::Other.into());
        Self {
            file,
            bytes,
            outcome,
        }
    }

    /// How many bytes came: not all, perhaps, though the file doesn't end there.
    ///
    /// # Errors
    /// When it can't be read, or not like this.
    pub(crate) fn finish(self) -> io::Result<usize> {
        self.outcome
    }
}

/// Reads that the kernel is asked for at once (io_submit(2)): what lies side by side on a disk
/// becomes one request.
#[derive(Debug)]
pub(crate) struct ReadQueue {
    context: libc::c_ulong,
    len_max: usize,
}

/// A request, as linux/aio_abi.h has it: a read is the opcode 0, and what is not named is zero.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct ReadRequest {
    /// Comes back with the outcome.
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    address: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_descriptor: u32,
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct ReadEvent {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

impl ReadQueue {
    /// A queue for so many reads at once.
    ///
    /// # Errors
    /// Where the kernel has none, has no more of them (fs.aio-max-nr), or a filter keeps us from it.
    pub(crate) fn new(len_max: u16) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        let len = libc::c_long::from(len_max);
        // SAFETY: the call writes the context, which outlives it, and takes a number.
        let answer = unsafe { libc::syscall(libc::SYS_io_setup, len, &raw mut context) };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
        let len_max = usize::from(len_max);
        Ok(Self { context, len_max })
    }

    /// Reads each file, and returns when all is read: the disk is asked for as many as fit before any
    /// is waited for.
    pub(crate) fn read_all(&mut self, readings: &mut [Reading<'_>]) {
        for some in readings.chunks_mut(self.len_max) {
            self.read_some(some);
        }
    }

    fn read_some(&mut self, readings: &mut [Reading<'_>]) {
        let request = |(number, reading): (u64, &mut Reading<'_>)| ReadRequest {
            data: number,
            descriptor: reading.file.as_raw_fd().cast_unsigned(),
            address: reading.bytes.as_mut_ptr().expose_provenance() as u64,
            len: reading.bytes.len() as u64,
            ..ReadRequest::default()
        };
        let mut requests: Vec<_> = (0..).zip(readings.iter_mut()).map(request).collect();
        let pointers: Vec<_> = requests.iter_mut().map(ptr::from_mut).collect();
        let (mut next, mut left) = (0, 0);
        while let Some(rest) = pointers.get(next..).filter(|rest| !rest.is_empty()) {
            let (number, count) = (libc::SYS_io_submit, rest.len());
            // SAFETY: the requests and the list of them outlive the call, which writes a key into each of
            // them. The memory that they name is borrowed exclusively by `readings`, which nobody looks at
            // before the kernel has done with it, and before that this function doesn't return.
            let answer = unsafe { libc::syscall(number, self.context, count, rest.as_ptr()) };
            match usize::try_from(answer) {
                Ok(submitted @ 1..) => {
                    next += submitted;
                    left += submitted;
                }
                // The first of the rest is one that the kernel refuses.
                _ => {
                    readings[next].outcome = Err(io::Error::last_os_error());
                    next += 1;
                }
            }
        }
        let mut events = vec![ReadEvent::default(); left];
        while left > 0 {
            let (number, room) = (libc::SYS_io_getevents, events.as_mut_ptr());
            let forever = ptr::null::<libc::timespec>();
            // SAFETY: there is room for as many events as are asked for, and it outlives the call. What
            // the kernel reads meanwhile goes where it was told to above.
            let answer = unsafe { libc::syscall(number, self.context, left, left, room, forever) };
            let Ok(count) = usize::try_from(answer) else {
                if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                // That waits for all that is under way, whose outcomes stay unknown.
                if self.destroy().is_err() {
                    // The kernel may write into this memory at any time, whoever has it by then.
                    std::process::abort();
                }
                return;
            };
            for event in events.iter().take(count) {
                let number = usize::try_from(event.data).unwrap_or(usize::MAX);
                if let Some(reading) = readings.get_mut(number) {
                    reading.outcome = usize::try_from(event.result).map_err(|_negative| {
                        io::Error::from_raw_os_error(
                            i32::try_from(-event.result).unwrap_or(libc::EIO),
                        )
                    });
                }
            }
            left -= count;
        }
    }

    /// Waits for what is under way. Whatever is asked for afterwards is refused.
    fn destroy(&mut self) -> io::Result<()> {
        // Another queue may be given the same number next.
        let context = std::mem::take(&mut self.context);
        if context == 0 {
            return Ok(());
        }
        // SAFETY: the call takes a number, and the context is this queue's own.
        match unsafe { libc::syscall(libc::SYS_io_destroy, context) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for ReadQueue {
    fn drop(&mut self) {
        // Nothing is under way, and the end of the process takes what stays.
        let _destroyed = self.destroy();
    }
}

/// Has the allocator keep memory that is freed, for whoever in this process asks for some next.
///
/// By itself glibc gives memory at the end of a heap back to the system at once, and the next packet of a QUIC
/// connection has to have it zeroed and mapped anew. These are the limits at which glibc arrives by itself at most,
/// after large allocations. Of an allocator that isn't glibc's nothing is asked.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (setting, bytes) in [
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_LEN),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_LEN),
    ] {
        // SAFETY: the call takes two numbers, and the allocator guards its settings by a lock. If it refuses,
        // memory is given back as before.
        let _accepted = unsafe { libc::mallopt(setting, bytes) };
    }
}

/// Smaller allocations come from a heap, larger ones have a mapping of their own: the most that glibc takes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD_LEN: libc::c_int = 32 << 20;

/// Free memory at the end of a heap that is kept: twice as much, as glibc has it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIM_THRESHOLD_LEN: libc::c_int = 2 * MMAP_THRESHOLD_LEN;

/// Sets the I/O priority of the calling thread, as ioprio_set(2) encodes it.
pub(crate) fn set_io_priority(priority: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_long = 1; // which means one thread
    const THIS_THREAD: libc::c_long = 0;
    let (number, priority) = (libc::SYS_ioprio_set, libc::c_long::from(priority));
    // SAFETY: the call takes three numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(number, WHO_PROCESS, THIS_THREAD, priority) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_apart_and_zero() {
        let mut parts = Part::make(5, 5000, 4096).unwrap();
        assert_eq!(parts[0].as_ptr().addr() % HUGE_PAGE_LEN, 0);
        for (number, part) in (1..).zip(&mut parts) {
            assert_eq!(part.as_ptr().addr() % 4096, 0);
            assert_eq!(**part, [0; 5000]);
            part.fill(number);
        }
        let last = parts.pop().unwrap();
        drop(parts);
        assert_eq!(*last, [5; 5000], "a part keeps the region");
        assert!(Part::make(usize::MAX / 2, 4096, 4096).is_err());
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn memory_that_was_freed_is_there_for_the_next_and_not_mapped_anew() {
        /// Pages that this thread had to have mapped by now (proc(5)).
        fn page_faults() -> u64 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_name, fields) = stat.rsplit_once(") ").unwrap();
            fields.split(' ').nth(7).unwrap().parse().unwrap()
        }
        keep_freed_memory();
        // A thread of its own has a heap of its own, whose end nobody else holds.
        let faults = std::thread::spawn(|| {
            let packets = || {
                let before = page_faults();
                let packets: Vec<Vec<u8>> = (0..128).map(|_| vec![1; 64 << 10]).collect();
                drop(std::hint::black_box(packets));
                page_faults() - before
            };
            [packets(), packets()]
        });
        let [first, second] = faults.join().unwrap();
        assert!(second < first / 10, "{first} pages at first, then {second}");
    }

    #[test]
    fn files_are_read_at_once_and_each_says_what_became_of_it() {
        let files: Vec<_> = (1..8)
            .map(|number| {
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), vec![number; usize::from(number) * 1000]).unwrap();
                file
            })
            .collect();
        let mut opened: Vec<_> = files
            .iter()
            .map(|file| File::open(file.path()).unwrap())
            .collect();
        // One in the middle that can't be read.
        opened[3] = File::options().write(true).open(files[3].path()).unwrap();
        let mut buffers = vec![vec![0; 4096]; opened.len()];
        let mut readings: Vec<_> = opened
            .iter()
            .zip(&mut buffers)
            .map(|(file, bytes)| Reading::new(file, bytes))
            .collect();
        // More than are under way at once.
        ReadQueue::new(3).unwrap().read_all(&mut readings);
        let outcomes: Vec<_> = readings.into_iter().map(Reading::finish).collect();
        for ((number, outcome), bytes) in (1..).zip(outcomes).zip(&buffers) {
            if number == 4 {
                assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EBADF));
                continue;
            }
            let len = usize::from(number) * 1000;
            assert_eq!(outcome.unwrap(), len.min(4096));
            let read = bytes.iter().filter(|byte| **byte == number).count();
            assert_eq!(read, len.min(4096));
        }
    }

    #[test]
    fn a_queue_that_ended_refuses_reads() {
        let file = tempfile::tempfile().unwrap();
        let mut queue = ReadQueue::new(1).unwrap();
        queue.destroy().unwrap();
        let mut bytes = [0; 8];
        let mut readings = [Reading::new(&file, &mut bytes)];
        queue.read_all(&mut readings);
        let [reading] = readings;
        assert_eq!(
            reading.finish().unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
