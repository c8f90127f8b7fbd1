//! Drives the library through a handshake, and takes the keys from it.
//!
//! The library is shown the peer's bytes record by record: what follows the last record of the
//! handshake is for the keys that it has given away by then, so it must not see it.

use std::io;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{Error, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::key::{HEADER_LEN, Keys, Library};
use super::record::{ALERT, ALERT_LEN, OVERHEAD};

/// More than the library keeps of a handshake: its longest message of 64 KiB, in records.
const INCOMING_LEN_MAX: usize = 128 << 10;

/// What a handshake leaves.
pub(super) struct Shaken {
    pub(super) keys: Keys,
    /// The application protocol that was agreed on.
    pub(super) protocol: Option<Vec<u8>>,
    /// What the peer has sent since.
    pub(super) early: Vec<u8>,
}

/// Either end of the library.
pub(super) trait End {
    type Data;

    fn process<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn protocol(&self) -> Option<Vec<u8>>;

    fn into_keys(self) -> Result<(ExtractedSecrets, Library), Error>;
}

impl End for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(shown)
    }

    fn protocol(&self) -> Option<Vec<u8>> {
        self.alpn_protocol().map(<[u8]>::to_vec)
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Library), Error> {
        let (secrets, library) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Library::Client(library)))
    }
}

impl End for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(shown)
    }

    fn protocol(&self) -> Option<Vec<u8>> {
        self.alpn_protocol().map(<[u8]>::to_vec)
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Library), Error> {
        let (secrets, library) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Library::Server(library)))
    }
}

/// Shakes hands. If it fails, the alert that tells the peer why has been sent.
pub(super) async fn shake<E: End, S>(mut end: E, stream: &mut S) -> io::Result<Shaken>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut incoming = Incoming::default();
    let mut outgoing = Vec::new();
    loop {
        match step(&mut end, &mut incoming, &mut outgoing) {
            Ok(Step::Again) => {}
            Ok(Step::Send) => send(stream, &mut outgoing).await?,
            Ok(Step::Receive) => incoming.receive(stream).await?,
            Ok(Step::Done) => break,
            Err(error) => {
                // Why the handshake failed says more than that the peer doesn't listen any more.
                let _ = send(stream, &mut outgoing).await;
                return Err(failed(error));
            }
        }
    }
    let protocol = end.protocol();
    let (secrets, library) = end.into_keys().map_err(failed)?;
    Ok(Shaken {
        keys: Keys::new(library, &secrets)?,
        protocol,
        early: incoming.unseen().ok_or_else(unexpected)?,
    })
}

/// What the library wants next.
enum Step {
    Again,
    Send,
    Receive,
    Done,
}

fn step<E: End>(
    end: &mut E,
    incoming: &mut Incoming,
    outgoing: &mut Vec<u8>,
) -> Result<Step, Error> {
    let UnbufferedStatus { discard, state, .. } = end.process(incoming.shown());
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(data)) => encode(data, outgoing).map(|()| Step::Again),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Send)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Receive),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        Ok(_) => Err(Error::HandshakeNotComplete),
        Err(error) => Err(error),
    };
    incoming.discard(discard);
    if step.is_err() {
        // An alert waits in the library, and perhaps a flight before it. The alert is the last that
        // it is asked for: it would look at the same record again and be sure to object.
        let mut sent = outgoing.len();
        while let Ok(ConnectionState::EncodeTlsData(data)) = end.process(incoming.shown()).state {
            encode(data, outgoing)?;
            if is_alert(outgoing.get(sent..).unwrap_or_default()) {
                break;
            }
            sent = outgoing.len();
        }
    }
    step
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    let start = outgoing.len();
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        data.encode(&mut [])
    {
        outgoing.resize(start + required_size, 0);
        let encoded = data.encode(outgoing.get_mut(start..).unwrap_or_default());
        encoded.map_err(|error| Error::General(error.to_string()))?;
    }
    Ok(())
}

/// Whether a record is an alert, by its type or, where that is sealed, by its length: there is nothing
/// else of two bytes.
fn is_alert(record: &[u8]) -> bool {
    record.first() == Some(&ALERT) || record.len() == OVERHEAD + ALERT_LEN
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, outgoing: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(outgoing).await?;
    outgoing.clear();
    stream.flush().await
}

/// What the peer has sent.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    /// The end of the record that the library is being shown, be it here yet or not.
    record_end: usize,
}

impl Incoming {
    fn shown(&mut self) -> &mut [u8] {
        let end = self.record_end.min(self.bytes.len());
        self.bytes.get_mut(..end).unwrap_or_default()
    }

    fn discard(&mut self, len: usize) {
        self.bytes.drain(..len.min(self.bytes.len()));
        self.record_end = self.record_end.saturating_sub(len);
    }

    /// Shows the next record, or receives more of it.
    async fn receive<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> io::Result<()> {
        let next = self.bytes.get(self.record_end..).unwrap_or_default();
        if let Some(&[_, _, _, high, low]) = next.first_chunk::<HEADER_LEN>() {
            self.record_end += HEADER_LEN + usize::from(u16::from_be_bytes([high, low]));
            return Ok(());
        }
        if self.bytes.len() > INCOMING_LEN_MAX {
            return Err(unexpected());
        }
        match stream.read_buf(&mut self.bytes).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// What the library was not shown; nothing if it left over some of what it was.
    fn unseen(self) -> Option<Vec<u8>> {
        (self.record_end == 0).then_some(self.bytes)
    }
}

fn failed(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn unexpected() -> io::Error {
    failed(Error::HandshakeNotComplete)
}
