use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use uuid::Uuid;

use super::super::{accept, client_config, dial, server_config};
use super::*;
use crate::address::PeerAddress;
use crate::identity::Credentials;
use crate::name::Role;
use crate::tls::judge::{Judge, PeerSide};

/// Enough for what a test has under way at once.
const PIPE_LEN: usize = 8 << 20;

/// A socket in memory, whose next reads give no more than they are told to.
#[derive(Debug)]
struct Pipe {
    inner: DuplexStream,
    /// Bytes that the next reads give at most; the last one counts for all that follow.
    reads: Vec<usize>,
}

impl Pipe {
    fn pair() -> (Self, Self) {
        let (one, other) = duplex(PIPE_LEN);
        let pipe = |inner| Self {
            inner,
            reads: vec![usize::MAX],
        };
        (pipe(one), pipe(other))
    }
}

impl Socket for Pipe {
    fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        parts: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let room: usize = parts.iter().map(|part| part.len()).sum();
        let mut read = vec![0; room];
        let mut read = ReadBuf::new(&mut read);
        ready!(Pin::new(self).poll_read(cx, &mut read))?;
        let mut given = read.filled();
        for part in parts {
            let (now, later) = given.split_at(part.len().min(given.len()));
            part[..now.len()].copy_from_slice(now);
            given = later;
        }
        Poll::Ready(Ok(read.filled().len()))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let limit = self.reads[0].min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(limit));
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        let len = part.filled().len();
        buf.advance(len);
        if self.reads.len() > 1 {
            self.reads.remove(0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

const ADDRESS: PeerAddress = PeerAddress::Unix;

/// The credentials of a clone.
struct Clone {
    dir: TempDir,
}

impl Clone {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        crate::mint(Uuid::new_v4(), Duration::from_secs(3600))
            .unwrap()
            .write_to(dir.path())
            .unwrap();
        Self { dir }
    }

    fn credentials(&self, role: Role) -> Credentials {
        Credentials::load(&self.dir.path().join(role.as_str())).unwrap()
    }

    async fn dial(&self, pipe: Pipe) -> TlsStream<Pipe> {
        let credentials = self.credentials(Role::Source);
        dial(pipe, ADDRESS, &credentials, Role::Target)
            .await
            .unwrap()
            .0
    }

    async fn accept(&self, pipe: Pipe) -> TlsStream<Pipe> {
        let credentials = self.credentials(Role::Target);
        accept(pipe, ADDRESS, &credentials, &[Role::Source])
            .await
            .unwrap()
            .0
    }

    /// Two ends of an established connection: the one that writes in a test, and the one that reads.
    async fn connect(&self) -> (TlsStream<Pipe>, TlsStream<Pipe>) {
        let (one, other) = Pipe::pair();
        tokio::join!(self.dial(one), self.accept(other))
    }
}

async fn pair() -> (TlsStream<Pipe>, TlsStream<Pipe>) {
    Clone::new().connect().await
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

impl TlsStream<Pipe> {
    /// A record of any content and type, not sent.
    fn forge(&mut self, content_type: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut sealed = [content, &[content_type], &vec![0; padding]].concat();
        let [high, low] = u16::try_from(sealed.len() + TAG_LEN).unwrap().to_be_bytes();
        let header = [DATA, 3, 3, high, low];
        let tag = self.outbound.key.seal(header, &mut sealed).unwrap();
        [&header[..], &sealed, &tag].concat()
    }

    async fn send_raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    async fn read_error(&mut self) -> RecordError {
        let error = self.read_u8().await.unwrap_err();
        *error
            .get_ref()
            .and_then(|error| error.downcast_ref())
            .unwrap()
    }
}

/// Records cut in two, wherever that is, into a reader's buffer that is large or small.
#[tokio::test]
async fn a_torn_record_is_whole_in_the_end() {
    let (mut writer, mut reader) = pair().await;
    let (first, second, third) = (pattern(40), pattern(CONTENT_LEN_MAX), pattern(7));
    let expected = [&first[..], &second, &third, &second].concat();
    let len = expected.len() + 4 * OVERHEAD;
    let near = |at: usize| at.saturating_sub(2 * OVERHEAD)..=at + 2 * OVERHEAD;
    let second_end = 40 + CONTENT_LEN_MAX + 2 * OVERHEAD;
    let cuts = near(40).chain(near(second_end)).chain(len - 40..len);
    let mut read = vec![0; DIRECT_LEN_MIN * 2];
    for cut in cuts {
        for room in [expected.len(), DIRECT_LEN_MIN * 2, 1000] {
            reader.socket.reads = vec![cut.max(1), usize::MAX];
            for part in [&first, &second, &third, &second] {
                writer.write_all(part).await.unwrap();
                writer.flush().await.unwrap();
            }
            let mut got = Vec::new();
            while got.len() < expected.len() {
                let room = room.min(expected.len() - got.len());
                let len = reader.read(&mut read[..room]).await.unwrap();
                assert_ne!(len, 0);
                got.extend_from_slice(&read[..len]);
            }
            assert!(got == expected, "cut at {cut}, read by {room}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However much the socket gives at once, and however much the reader wants.
    #[test]
    fn what_is_written_is_read(
        mut reads in prop::collection::vec(1_usize..40_000, 1..40),
        rooms in prop::collection::vec(prop_oneof![1_usize..200, 1000_usize..200_000], 1..40),
        writes in prop::collection::vec(0_usize..150_000, 1..12),
    ) {
        reads.push(50_000);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let (mut writer, mut reader) = pair().await;
            reader.socket.reads = reads;
            let written = pattern(writes.iter().sum());
            let mut rest = &written[..];
            for len in writes {
                let (now, later) = rest.split_at(len);
                let (one, two) = now.split_at(len / 3);
                let mut slices = [IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(two)];
                let mut slices = &mut slices[..];
                IoSlice::advance_slices(&mut slices, 0);
                while !slices.is_empty() {
                    let len = writer.write_vectored(slices).await.unwrap();
                    IoSlice::advance_slices(&mut slices, len);
                }
                rest = later;
            }
            writer.shutdown().await.unwrap();
            let mut read = Vec::new();
            let mut room = vec![0; 200_000];
            for len in rooms.iter().cycle() {
                match reader.read(&mut room[..*len]).await.unwrap() {
                    0 => break,
                    len => read.extend_from_slice(&room[..len]),
                }
            }
            assert!(read == written);
        });
    }

    /// Bytes of anybody's making end the connection, and nothing else.
    #[test]
    fn bytes_that_are_no_records_are_refused(
        bytes in prop::collection::vec(any::<u8>(), 1..2000),
        is_like_data: bool,
        room in prop_oneof![Just(1), Just(DIRECT_LEN_MIN)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let (mut writer, mut reader) = pair().await;
            if is_like_data {
                writer.send_raw(&[DATA, 3, 3, 0]).await;
            }
            writer.send_raw(&bytes).await;
            writer.socket.shutdown().await.unwrap();
            assert!(reader.read(&mut vec![0; room]).await.is_err());
            assert!(reader.read(&mut vec![0; room]).await.is_err(), "for good");
        });
    }
}

#[tokio::test]
async fn a_record_that_was_changed_is_not_given() {
    let clone = Clone::new();
    let len = 10 + OVERHEAD;
    for at in 0..len {
        let (mut writer, mut reader) = clone.connect().await;
        let first = writer.forge(DATA, b"before", 0);
        writer.send_raw(&first).await;
        let mut changed = writer.forge(DATA, &[7; 10], 0);
        changed[at] ^= 1;
        writer.send_raw(&changed).await;
        writer.socket.shutdown().await.unwrap();
        let mut read = vec![0; DIRECT_LEN_MIN];
        assert_eq!(reader.read(&mut read).await.unwrap(), 6, "byte {at}");
        let error = reader.read_error().await;
        let expected = match at {
            0 => RecordError::Unexpected,
            3 => RecordError::Truncated, // it seems to be longer
            _ => RecordError::Tampered,
        };
        assert_eq!(error, expected, "byte {at}");
        assert_eq!(reader.read_error().await, expected, "for good");
        if let Some(alert) = expected.alert() {
            assert_eq!(writer.read_error().await, RecordError::Alert(alert));
            let error = reader.write_all(b"x").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }
}

#[tokio::test]
async fn a_record_in_another_ones_place_is_not_given() {
    let clone = Clone::new();
    for order in [&[1, 0][..], &[0, 0], &[1]] {
        let (mut writer, mut reader) = clone.connect().await;
        let records = [b"one", b"two"].map(|content| writer.forge(DATA, content, 0));
        for which in order {
            writer.send_raw(&records[*which]).await;
        }
        let mut read = Vec::new();
        let error = reader.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read.is_empty() || read == b"one");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_short_has_no_orderly_end() {
    let clone = Clone::new();
    for room in [1, DIRECT_LEN_MIN] {
        for keep in (0..2 * (10 + OVERHEAD)).step_by(3) {
            let (mut writer, mut reader) = clone.connect().await;
            let records = [[1; 10], [2; 10]].map(|content| writer.forge(DATA, &content, 0));
            writer.send_raw(&records.concat()[..keep]).await;
            writer.socket.shutdown().await.unwrap();
            let mut read = vec![0; room];
            let mut got = 0;
            let error = loop {
                match reader.read(&mut read).await {
                    Ok(len) if len > 0 => got += len,
                    Ok(_) => panic!("an orderly end after {keep} bytes"),
                    Err(error) => break error,
                }
            };
            assert_eq!(got, keep / (10 + OVERHEAD) * 10);
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}

#[tokio::test]
async fn records_have_bounds() {
    let clone = Clone::new();
    let longest = vec![7; CONTENT_LEN_MAX];
    let (mut writer, mut reader) = clone.connect().await;
    for padding in [0, 1, 255] {
        let content = &longest[padding..];
        let record = writer.forge(DATA, content, padding);
        writer.send_raw(&record).await;
        let mut read = vec![0; content.len()];
        reader.read_exact(&mut read).await.unwrap();
        assert_eq!(read, content);
    }
    // Nothing but padding, and nothing at all: that is data, too.
    for padding in [0, 100] {
        let record = writer.forge(DATA, &[], padding);
        writer.send_raw(&record).await;
    }
    writer.write_all(b"?").await.unwrap();
    assert_eq!(reader.read_u8().await.unwrap(), b'?');

    let check = async |record: &dyn Fn(&mut TlsStream<Pipe>) -> Vec<u8>, expected| {
        for room in [1, DIRECT_LEN_MIN * 2] {
            let (mut writer, mut reader) = clone.connect().await;
            let record = record(&mut writer);
            writer.send_raw(&record).await;
            let error = reader.read(&mut vec![0; room]).await.unwrap_err();
            let error = error.get_ref().unwrap().downcast_ref::<RecordError>();
            assert_eq!(error, Some(&expected));
        }
    };
    let too_long = vec![7; CONTENT_LEN_MAX + 1];
    check(
        &|writer| writer.forge(DATA, &too_long, 0),
        RecordError::Oversized,
    )
    .await;
    check(
        &|writer| writer.forge(DATA, &longest, 1),
        RecordError::Oversized,
    )
    .await;
    check(&|_| vec![DATA, 3, 3, 0x41, 1], RecordError::Oversized).await;
    check(&|_| vec![DATA, 3, 3, 0, 16], RecordError::Unexpected).await;
    check(&|_| vec![ALERT, 3, 3, 0, 2, 2, 40], RecordError::Unexpected).await;
    check(&|writer| writer.forge(0, &[], 5), RecordError::Unexpected).await;
    check(&|writer| writer.forge(20, &[1], 0), RecordError::Unexpected).await;
    check(
        &|writer| writer.forge(ALERT, &[2], 0),
        RecordError::Unexpected,
    )
    .await;
    check(
        &|writer| writer.forge(ALERT, &[2, 42], 0),
        RecordError::Alert(42),
    )
    .await;
    // A ticket, a key update in pieces, two in one, one that is neither asked for nor not.
    for message in [
        &[4, 0, 0, 1, 0][..],
        &[KEY_UPDATE, 0],
        &[KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0, 0, 1, 0],
        &[KEY_UPDATE, 0, 0, 1, 2],
        &[],
    ] {
        check(
            &|writer| writer.forge(HANDSHAKE, message, 0),
            RecordError::Unexpected,
        )
        .await;
    }
}

#[tokio::test]
async fn keys_are_changed_before_their_limit() {
    let (mut one, mut other) = pair().await;
    one.schedule.limit(3);
    other.schedule.limit(5);
    let sent = pattern(1 << 20);
    both_ways(&mut one, &mut other, &sent).await;
    assert!((1..=3).contains(&one.outbound.key.records()));
    assert!((1..=5).contains(&other.outbound.key.records()));
    assert_eq!(
        one.outbound.key.records(),
        other.inbound.opener.key.records()
    );
    assert_eq!(
        other.outbound.key.records(),
        one.inbound.opener.key.records()
    );
}

async fn both_ways<A, B>(one: &mut A, other: &mut B, bytes: &[u8])
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut read = vec![0; bytes.len()];
    one.write_all(bytes).await.unwrap();
    one.flush().await.unwrap();
    other.read_exact(&mut read).await.unwrap();
    assert!(read == bytes);
    read.fill(0);
    other.write_all(bytes).await.unwrap();
    other.flush().await.unwrap();
    one.read_exact(&mut read).await.unwrap();
    assert!(read == bytes);
}

#[tokio::test]
async fn a_key_update_is_answered_when_that_is_asked_for() {
    for asks in [0, 1] {
        let (mut one, mut other) = pair().await;
        for _ in 0..3 {
            let update = one.forge(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, asks], 0);
            one.send_raw(&update).await;
            one.outbound.key = one.schedule.next_sending().unwrap();
        }
        one.write_all(b"?").await.unwrap();
        assert_eq!(other.read_u8().await.unwrap(), b'?');
        other.write_all(b"!").await.unwrap();
        // Once for all three, before the data.
        let answer_len = usize::from(asks) * (KEY_UPDATE_MESSAGE.len() + OVERHEAD);
        let mut raw = vec![0; answer_len + 1 + OVERHEAD];
        one.socket.read_exact(&mut raw).await.unwrap();
        assert_eq!(other.outbound.key.records(), 1);
        drop(other);
        assert_eq!(one.socket.read(&mut [0]).await.unwrap(), 0, "no more");
        one.inbound.buffer[..raw.len()].copy_from_slice(&raw);
        one.inbound.take(raw.len(), raw.len());
        assert_eq!(one.read_u8().await.unwrap(), b'!');
    }
}

#[tokio::test]
async fn a_peer_that_only_changes_keys_is_refused() {
    let (mut one, mut other) = pair().await;
    for _ in 0..=KEY_UPDATES_MAX {
        let update = one.forge(HANDSHAKE, &KEY_UPDATE_MESSAGE, 0);
        one.send_raw(&update).await;
        one.outbound.key = one.schedule.next_sending().unwrap();
    }
    assert_eq!(other.read_error().await, RecordError::TooManyKeyUpdates);
}

#[tokio::test]
async fn one_direction_ends_and_the_other_goes_on() {
    let (mut one, mut other) = pair().await;
    one.write_all(b"last").await.unwrap();
    one.shutdown().await.unwrap();
    let error = one.write_all(b"?").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    let mut read = Vec::new();
    other.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"last");
    assert_eq!(other.read(&mut [0]).await.unwrap(), 0, "for good");
    other.write_all(&pattern(100_000)).await.unwrap();
    other.shutdown().await.unwrap();
    read.clear();
    one.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, pattern(100_000));
}

/// What a peer says with the last bytes of its handshake belongs to the records.
#[tokio::test]
async fn bytes_behind_the_handshake_are_not_lost() {
    let clone = Clone::new();
    let sent = pattern(300_000);
    let (one, other) = Pipe::pair();
    let dialed = clone.dial(one);
    let dialing = async {
        let mut stream = dialed.await;
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    };
    let (_stream, mut reader) = tokio::join!(dialing, clone.accept(other));
    assert!(!reader.inbound.sealed.is_empty(), "nothing came early");
    let mut read = Vec::new();
    reader.read_to_end(&mut read).await.unwrap();
    assert!(read == sent);
}

/// The library at the other end, with all it does: its own records, tickets off as between agents,
/// key updates at both ends, the end.
#[tokio::test]
async fn the_library_understands_us() {
    let clone = Clone::new();
    let bytes = pattern(1 << 20);

    let (one, other) = Pipe::pair();
    let credentials = clone.credentials(Role::Source);
    let judge = Arc::new(Judge::new(&credentials, &[Role::Target], PeerSide::Server));
    let config = client_config(&credentials, judge).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let dialing = connector.connect(ServerName::from(ADDRESS.or_unspecified().ip()), one);
    let (library, mut ours) = tokio::join!(dialing, clone.accept(other));
    let mut library = library.unwrap();
    ours.schedule.limit(7);
    both_ways(&mut library, &mut ours, &bytes).await;
    library.get_mut().1.refresh_traffic_keys().unwrap();
    both_ways(&mut library, &mut ours, &bytes).await;
    end(&mut library, &mut ours).await;

    let (one, other) = Pipe::pair();
    let credentials = clone.credentials(Role::Target);
    let judge = Arc::new(Judge::new(&credentials, &[Role::Source], PeerSide::Client));
    let config = server_config(&credentials, judge).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (mut ours, library) = tokio::join!(clone.dial(one), acceptor.accept(other));
    let mut library = library.unwrap();
    ours.schedule.limit(7);
    both_ways(&mut ours, &mut library, &bytes).await;
    library.get_mut().1.refresh_traffic_keys().unwrap();
    both_ways(&mut ours, &mut library, &bytes).await;
    end(&mut ours, &mut library).await;
}

async fn end<A, B>(one: &mut A, other: &mut B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    one.shutdown().await.unwrap();
    assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
    other.shutdown().await.unwrap();
    assert_eq!(one.read(&mut [0]).await.unwrap(), 0);
}

/// Every cipher, whichever implementation it has here.
#[tokio::test]
async fn every_suite_seals_what_the_other_end_opens() {
    use rustls::{ConnectionTrafficSecrets, crypto::cipher::Iv};
    let key = || [3; 32].into();
    let iv = || Iv::from([5; 12]);
    for secrets in [
        ConnectionTrafficSecrets::Aes128Gcm {
            key: key(),
            iv: iv(),
        },
        ConnectionTrafficSecrets::Aes256Gcm {
            key: key(),
            iv: iv(),
        },
        ConnectionTrafficSecrets::Chacha20Poly1305 {
            key: key(),
            iv: iv(),
        },
    ] {
        let header = [DATA, 3, 3, 0, 0];
        let mut sealing = Key::new(0, &secrets).unwrap();
        let mut opening = Key::new(0, &secrets).unwrap();
        for _ in 0..300 {
            let mut content = *b"content";
            let tag = sealing.seal(header, &mut content).unwrap();
            let mut sealed = [b"####", &content[..], &tag].concat();
            assert_eq!(opening.open(header, &mut sealed, 4).unwrap(), b"content");
        }
    }
}
