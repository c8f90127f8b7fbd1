//! The records of an established connection (RFC 8446, section 5), read and written in large pieces.
//!
//! ```text
//! byte 0   1   2   3   4   5 ..              len-16 ..
//!    type=23  version   len   ciphertext of           tag
//!                             content | type | zeros
//! ```
//!
//! Of what may come in a record, little is meant: data, the orderly end, an alert and the next key.
//! Everything else ends the connection.
//!
//! The library could do all this, and did. It copies three times on the way in; this decrypts what
//! the socket put into the reader's own buffer, where it lies.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::handshake::Shaken;
use super::key::{HEADER_LEN, Key, KeySchedule, TAG_LEN};

/// The longest content of a record.
const CONTENT_LEN_MAX: usize = 1 << 14;
/// What a record adds to its content, unpadded.
pub(super) const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;
/// The longest record that may come. A cipher may add up to 256 bytes, though none of ours does.
const RECORD_LEN_MAX: usize = HEADER_LEN + CONTENT_LEN_MAX + 256;

/// Data encrypted at once, for one write to the socket: enough that the system call doesn't count,
/// and little enough to stay in a processor's second-level cache.
const SENDING_LEN: usize = 16 * (CONTENT_LEN_MAX + OVERHEAD);
/// Room behind that for an alert and a key update.
const CONTROL_LEN: usize = OVERHEAD + ALERT_LEN + OVERHEAD + KEY_UPDATE_MESSAGE.len();

/// Bytes read from the socket to the reader's buffer at once, for the same reason.
const RECEIVING_LEN: usize = 256 << 10;
/// Bytes read ahead of what the reader asks for, when it asks for little or to fill its buffer.
const AHEAD_LEN: usize = 64 << 10;
/// What a reader's buffer must have room for to be received into: the end of a record that came in
/// part, and some more.
const DIRECT_LEN_MIN: usize = 2 * CONTENT_LEN_MAX;

/// Key updates that a peer may send without any data between them.
const KEY_UPDATES_MAX: u8 = 32;

// What a record is about (RFC 8446, section 5.1); sealed, each looks like data.
pub(super) const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

// An alert (section 6): its level, then its number.
pub(super) const ALERT_LEN: usize = 2;
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;

// The only message of the handshake protocol that still comes (section 4.6.3): its type, its length
// in three bytes, and whether the other end shall do the same.
const KEY_UPDATE: u8 = 24;
const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// Why there is no next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// The peer ended the connection with an alert.
    #[error("the peer sent alert {0}")]
    Alert(u8),
    /// The connection ended without `close_notify`.
    #[error("the peer closed the connection in the middle")]
    Truncated,
    /// A record is not what the peer sealed, or is not in its place.
    #[error("a record was tampered with")]
    Tampered,
    /// A record is longer than records may be.
    #[error("a record is longer than {CONTENT_LEN_MAX} bytes")]
    Oversized,
    /// A record is none that is expected on an established connection.
    #[error("an unexpected record")]
    Unexpected,
    /// The peer only ever changes its key.
    #[error("more than {KEY_UPDATES_MAX} key updates in a row")]
    TooManyKeyUpdates,
    /// There is no next key, or it can't be used.
    #[error("no key for the next record")]
    Keys,
}

impl RecordError {
    /// What the peer is told (RFC 8446, section 6.2).
    const fn alert(self) -> Option<u8> {
        match self {
            Self::Alert(_) | Self::Truncated => None,
            Self::Unexpected | Self::TooManyKeyUpdates => Some(10), // unexpected_message
            Self::Tampered => Some(20),                             // bad_record_mac
            Self::Oversized => Some(22),                            // record_overflow
            Self::Keys => Some(80),                                 // internal_error
        }
    }
}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> Self {
        let kind = match error {
            RecordError::Truncated => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// What records are read from and written to.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Reads into the first of `parts` that has room, or into several.
    fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        parts: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(part) = parts.iter_mut().find(|part| !part.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let mut part = ReadBuf::new(part);
        ready!(Pin::new(self).poll_read(cx, &mut part))?;
        Poll::Ready(Ok(part.filled().len()))
    }
}

/// The kernel fills the parts by one call.
macro_rules! read_vectored_by_kernel {
    ($($stream:ty),+) => {$(
        impl Socket for $stream {
            fn poll_read_vectored(
                &mut self,
                cx: &mut Context<'_>,
                parts: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_read_ready(cx))?;
                    match self.try_read_vectored(parts) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        read => return Poll::Ready(read),
                    }
                }
            }
        }
    )+};
}

read_vectored_by_kernel!(TcpStream, UnixStream);

/// An established connection.
pub(crate) struct TlsStream<S> {
    socket: S,
    schedule: KeySchedule,
    inbound: Inbound,
    outbound: Outbound,
}

impl<S: Socket> TlsStream<S> {
    pub(super) fn new(socket: S, shaken: Shaken) -> Self {
        Self {
            socket,
            schedule: shaken.keys.schedule,
            inbound: Inbound::new(shaken.keys.receiving, &shaken.early),
            outbound: Outbound::new(shaken.keys.sending),
        }
    }

    /// Receives once. What is received into `buf` is opened there.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inbound = &mut self.inbound;
        inbound.align();
        let torn = inbound.sealed.len();
        let torn_len = record_len(inbound.sealed_bytes()).unwrap_or_default();
        if buf.remaining() < DIRECT_LEN_MIN || (torn > 0 && torn_len.is_none()) {
            let mut room = ReadBuf::new(inbound.buffer.get_mut(torn..).unwrap_or_default());
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut room))?;
            let received = room.filled().len();
            inbound.take(received, received);
            return Poll::Ready(Ok(()));
        }

        // The rest of the torn record goes behind its beginning; what follows, into `buf` behind the
        // place of the torn record's content; what `buf` has no room for, to where it is kept.
        let torn_len = torn_len.unwrap_or_default();
        let start = torn_len.saturating_sub(OVERHEAD);
        let (front, ahead) = inbound.buffer.split_at_mut(RECORD_LEN_MAX);
        let rest = front.get_mut(torn..torn_len).unwrap_or_default();
        let place = buf.initialize_unfilled();
        let room = place.get_mut(start..).unwrap_or_default();
        let (room, beyond) = room.split_at_mut(room.len().min(RECEIVING_LEN));
        let (rest_len, room_len) = (rest.len(), room.len());
        let mut parts = [
            IoSliceMut::new(rest),
            IoSliceMut::new(room),
            IoSliceMut::new(if beyond.is_empty() { ahead } else { &mut [] }),
        ];
        let received = ready!(self.socket.poll_read_vectored(cx, &mut parts))?;
        inbound.take(received, rest_len);
        let Some(behind) = received.checked_sub(rest_len).filter(|len| *len > 0) else {
            return Poll::Ready(Ok(()));
        };
        let end = start + behind.min(room_len);
        let filled = inbound.open_in(&mut self.schedule, place, start..end);
        inbound.sealed.end += behind.saturating_sub(room_len);
        buf.advance(filled);
        Poll::Ready(Ok(()))
    }

    /// Hands what is sealed to the socket.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let unsent @ [_, ..] = self.outbound.sealed_bytes() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, unsent))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.outbound.sealed.start += sent,
            }
        }
        self.outbound.sealed = 0..0;
        Poll::Ready(Ok(()))
    }
}

impl<S: Socket> AsyncRead for TlsStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let remaining = buf.remaining();
        loop {
            this.inbound.give(buf);
            let gave = buf.remaining() < remaining;
            match this.inbound.opener.state {
                _ if buf.remaining() == 0 => return Poll::Ready(Ok(())),
                State::Ended => return Poll::Ready(Ok(())),
                State::Failed(_) if gave => return Poll::Ready(Ok(())),
                State::Failed(error) => {
                    if let Some(alert) = error.alert() {
                        // Whether the peer still listens changes nothing.
                        let _told = this.outbound.end(FATAL, alert);
                        let _heard = this.poll_send(cx);
                    }
                    return Poll::Ready(Err(error.into()));
                }
                State::Open => {}
            }
            if this.inbound.open_next(&mut this.schedule) {
                continue;
            }
            if gave {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_receive(cx, buf))?;
        }
    }
}

impl<S: Socket> AsyncWrite for TlsStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.outbound.has_room() {
            ready!(this.poll_send(cx))?;
        }
        this.outbound.owes_key_update |= std::mem::take(&mut this.inbound.opener.is_asked);
        let taken = this.outbound.seal_data(&mut this.schedule, bufs)?;
        // What the socket doesn't take now waits for the next write or flush.
        match this.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.outbound.end(WARNING, CLOSE_NOTIFY)?;
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("socket", &self.socket)
            .field("state", &self.inbound.opener.state)
            .finish_non_exhaustive() // the rest is keys and somebody's data
    }
}

/// What comes.
struct Inbound {
    opener: Opener,
    buffer: Box<[u8]>,
    /// Where content is that was opened and not yet given to the reader.
    content: Range<usize>,
    /// Where records are that were not yet opened; the last one may be torn.
    sealed: Range<usize>,
}

impl Inbound {
    fn new(key: Key, early: &[u8]) -> Self {
        let mut buffer = vec![0; early.len().max(RECORD_LEN_MAX + AHEAD_LEN)];
        if let Some(start) = buffer.get_mut(..early.len()) {
            start.copy_from_slice(early);
        }
        Self {
            opener: Opener {
                key,
                state: State::Open,
                key_updates: 0,
                is_asked: false,
            },
            buffer: buffer.into(),
            content: 0..0,
            sealed: 0..early.len(),
        }
    }

    fn sealed_bytes(&self) -> &[u8] {
        self.buffer.get(self.sealed.clone()).unwrap_or_default()
    }

    /// Moves what is not opened to the front.
    fn align(&mut self) {
        if self.sealed.start > 0 {
            self.buffer.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
    }

    /// Counts what was `received`, of which up to `len` bytes are in the buffer.
    fn take(&mut self, received: usize, len: usize) {
        if received == 0 {
            self.opener.state = State::Failed(RecordError::Truncated);
        }
        self.sealed.end += received.min(len);
    }

    /// Opens the next record, if all of it is here. Gives whether it was.
    fn open_next(&mut self, schedule: &mut KeySchedule) -> bool {
        let start = self.sealed.start;
        let sealed = self.buffer.get_mut(self.sealed.clone()).unwrap_or_default();
        let Some(len) = self.opener.whole_len(sealed) else {
            return self.opener.state != State::Open;
        };
        let record = sealed.get_mut(..len).unwrap_or_default();
        self.content = start..start + self.opener.open(schedule, record, 0);
        self.sealed.start += len;
        true
    }

    /// Opens the torn record, which is whole by now, and those of `place[records]`; all content goes
    /// to the beginning of `place`. Gives its length. Another torn record is kept.
    fn open_in(
        &mut self,
        schedule: &mut KeySchedule,
        place: &mut [u8],
        records: Range<usize>,
    ) -> usize {
        self.open_next(schedule);
        let mut filled = ReadBuf::new(place);
        self.give(&mut filled);
        let mut filled = filled.filled().len();
        let Range { mut start, end } = records;
        while let Some(len) = self
            .opener
            .whole_len(place.get(start..end).unwrap_or_default())
        {
            let in_out = place.get_mut(filled..start + len).unwrap_or_default();
            filled += self.opener.open(schedule, in_out, start - filled);
            start += len;
        }
        // In front of where the following bytes are, if any.
        let torn = place.get(start..end).unwrap_or_default();
        self.sealed = RECORD_LEN_MAX.saturating_sub(torn.len())..RECORD_LEN_MAX;
        if let Some(kept) = self.buffer.get_mut(self.sealed.clone())
            && kept.len() == torn.len()
        {
            kept.copy_from_slice(torn);
        }
        filled
    }

    /// Copies what was opened.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let len = self.content.len().min(buf.remaining());
        let end = self.content.start + len;
        buf.put_slice(self.buffer.get(self.content.start..end).unwrap_or_default());
        self.content.start = end;
    }
}

/// What happens to records that come.
struct Opener {
    key: Key,
    state: State,
    /// Since the last data.
    key_updates: u8,
    /// Whether the peer wants our next key, too.
    is_asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed(RecordError),
}

impl Opener {
    /// The length of the record that `bytes` begin with, if all of it is here and it is wanted.
    fn whole_len(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.state != State::Open {
            return None;
        }
        let len = record_len(bytes).unwrap_or_else(|error| {
            self.state = State::Failed(error);
            None
        });
        len.filter(|len| *len <= bytes.len())
    }

    /// Opens the record `in_out[at..]`. Puts data to the beginning of `in_out`, and gives its length.
    fn open(&mut self, schedule: &mut KeySchedule, in_out: &mut [u8], at: usize) -> usize {
        self.try_open(schedule, in_out, at).unwrap_or_else(|error| {
            self.state = State::Failed(error);
            0
        })
    }

    fn try_open(
        &mut self,
        schedule: &mut KeySchedule,
        in_out: &mut [u8],
        at: usize,
    ) -> Result<usize, RecordError> {
        let record = in_out.get(at..).unwrap_or_default();
        let header = *record.first_chunk().ok_or(RecordError::Unexpected)?;
        let padded = self.key.open(header, in_out, at + HEADER_LEN)?;
        if padded.len() > CONTENT_LEN_MAX + 1 {
            return Err(RecordError::Oversized);
        }
        // Behind the content there is its type, then zeros.
        let len = padded.iter().rposition(|byte| *byte != 0);
        let (content, rest) = padded.split_at(len.ok_or(RecordError::Unexpected)?);
        match (rest.first().copied().unwrap_or_default(), content) {
            (DATA, []) => {}
            (DATA, content) => {
                self.key_updates = 0;
                return Ok(content.len());
            }
            (ALERT, [_, CLOSE_NOTIFY]) => self.state = State::Ended,
            (ALERT, [_, alert]) => return Err(RecordError::Alert(*alert)),
            (HANDSHAKE, [KEY_UPDATE, 0, 0, 1, asks @ 0..=1]) => {
                if self.key_updates == KEY_UPDATES_MAX {
                    return Err(RecordError::TooManyKeyUpdates);
                }
                self.key_updates += 1;
                self.is_asked |= *asks == 1;
                self.key = schedule.next_receiving()?;
            }
            _ => return Err(RecordError::Unexpected),
        }
        Ok(0)
    }
}

/// The length of the record that `bytes` begin with, once that can be seen.
fn record_len(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[content, _, _, high, low]) = bytes.first_chunk() else {
        return Ok(None);
    };
    // The version means nothing, but is authenticated like the rest.
    let len = HEADER_LEN + usize::from(u16::from_be_bytes([high, low]));
    if content != DATA || len < OVERHEAD {
        return Err(RecordError::Unexpected);
    }
    if len > RECORD_LEN_MAX {
        return Err(RecordError::Oversized);
    }
    Ok(Some(len))
}

/// What goes.
struct Outbound {
    key: Key,
    buffer: Box<[u8]>,
    /// Where records are that the socket has not taken yet.
    sealed: Range<usize>,
    /// The peer changed its key and wants us to do so, too, before we send more.
    owes_key_update: bool,
    is_ended: bool,
}

impl Outbound {
    fn new(key: Key) -> Self {
        Self {
            key,
            buffer: vec![0; SENDING_LEN + CONTROL_LEN].into(),
            sealed: 0..0,
            owes_key_update: false,
            is_ended: false,
        }
    }

    fn sealed_bytes(&self) -> &[u8] {
        self.buffer.get(self.sealed.clone()).unwrap_or_default()
    }

    /// Whether there is room for a record of data.
    const fn has_room(&self) -> bool {
        self.sealed.end + CONTENT_LEN_MAX + OVERHEAD <= SENDING_LEN
    }

    /// Seals as much of `bufs` as there is room for; gives how much.
    fn seal_data(&mut self, schedule: &mut KeySchedule, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.is_ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut data = Gather::new(bufs);
        let mut taken = 0;
        while data.remaining > 0 && self.has_room() {
            // The update itself is the key's last record.
            if self.owes_key_update || self.key.records() + 1 >= schedule.records_max() {
                self.seal(
                    HANDSHAKE,
                    &mut Gather::new(&[IoSlice::new(&KEY_UPDATE_MESSAGE)]),
                )?;
                self.key = schedule.next_sending()?;
                self.owes_key_update = false;
            }
            taken += self.seal(DATA, &mut data)?;
        }
        Ok(taken)
    }

    /// Seals the last record, unless that has happened.
    fn end(&mut self, level: u8, alert: u8) -> io::Result<()> {
        if !self.is_ended {
            self.is_ended = true;
            self.seal(ALERT, &mut Gather::new(&[IoSlice::new(&[level, alert])]))?;
        }
        Ok(())
    }

    /// Seals one record of what `bytes` begin with; gives how much that is.
    fn seal(&mut self, content_type: u8, bytes: &mut Gather<'_>) -> Result<usize, RecordError> {
        let len = bytes.remaining.min(CONTENT_LEN_MAX);
        let Range { end, .. } = self.sealed;
        let record = self.buffer.get_mut(end..end + OVERHEAD + len);
        let record = record.ok_or(RecordError::Keys)?;
        let (header, sealed) = record.split_at_mut(HEADER_LEN);
        let [high, low] = u16::try_from(sealed.len())
            .map_err(|_| RecordError::Oversized)?
            .to_be_bytes();
        header.copy_from_slice(&[DATA, 3, 3, high, low]);
        let (in_out, tag) = sealed.split_at_mut(len + 1);
        if let Some((last, content)) = in_out.split_last_mut() {
            bytes.fill(content);
            *last = content_type;
        }
        tag.copy_from_slice(&self.key.seal([DATA, 3, 3, high, low], in_out)?);
        self.sealed.end = end + OVERHEAD + len;
        Ok(len)
    }
}

/// Bytes that lie in several places.
struct Gather<'a> {
    place: &'a [u8],
    places: std::slice::Iter<'a, IoSlice<'a>>,
    remaining: usize,
}

impl<'a> Gather<'a> {
    fn new(places: &'a [IoSlice<'a>]) -> Self {
        Self {
            place: &[],
            places: places.iter(),
            remaining: places.iter().map(|place| place.len()).sum(),
        }
    }

    /// Copies the next bytes; there are enough.
    fn fill(&mut self, mut part: &mut [u8]) {
        while !part.is_empty() {
            let len = part.len().min(self.place.len());
            let (now, later) = self.place.split_at(len);
            let (filled, rest) = part.split_at_mut(len);
            filled.copy_from_slice(now);
            self.remaining -= len;
            (self.place, part) = (later, rest);
            if later.is_empty() {
                match self.places.next() {
                    Some(place) => self.place = place,
                    None => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
