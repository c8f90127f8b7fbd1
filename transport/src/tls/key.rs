//! The keys of a connection that is established: they seal and open records, and follow each other.
//!
//! A record's nonce is the initialization vector xored with the record's number under its key (RFC
//! 8446, section 5.3), so each number is used once.

use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{AeadKey, Iv, NONCE_LEN};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use {aws_lc_rs::aead as aws_lc, ring::aead as ring};

use super::cipher_support;
use super::record::RecordError;

/// What a record's authentication takes, in bytes; the same for all suites of TLS 1.3 here.
pub(super) const TAG_LEN: usize = 16;

/// The bytes before a record, which are authenticated with it.
pub(super) const HEADER_LEN: usize = 5;

/// One direction's key, and how far it has been used.
pub(super) struct Key {
    cipher: Cipher,
    iv: [u8; NONCE_LEN],
    records: u64,
}

/// A cipher by one of the two implementations; see `cipher_suites` for why there are two.
enum Cipher {
    AwsLc(aws_lc::LessSafeKey),
    Ring(Box<ring::LessSafeKey>), // its tables lie within
}

impl Key {
    pub(super) fn new(
        records: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> Result<Self, RecordError> {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (cipher, iv) = match secrets {
            Aes128Gcm { key, iv } if cipher_support().has_wide_aes => {
                (Cipher::aws_lc(&aws_lc::AES_128_GCM, key), iv)
            }
            Aes128Gcm { key, iv } => (Cipher::ring(&ring::AES_128_GCM, key), iv),
            Aes256Gcm { key, iv } => (Cipher::aws_lc(&aws_lc::AES_256_GCM, key), iv),
            Chacha20Poly1305 { key, iv } => (Cipher::aws_lc(&aws_lc::CHACHA20_POLY1305, key), iv),
            _ => (None, &Iv::from([0; NONCE_LEN])),
        };
        Ok(Self {
            cipher: cipher.ok_or(RecordError::Keys)?,
            iv: iv.as_ref().try_into().map_err(|_| RecordError::Keys)?,
            records,
        })
    }

    /// Records that this key has sealed or opened.
    pub(super) const fn records(&self) -> u64 {
        self.records
    }

    /// Encrypts `in_out` in place and gives its tag.
    pub(super) fn seal(
        &mut self,
        header: [u8; HEADER_LEN],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_LEN], RecordError> {
        let nonce = self.next_nonce()?;
        let tag = match &self.cipher {
            Cipher::AwsLc(key) => key
                .seal_in_place_separate_tag(
                    aws_lc::Nonce::assume_unique_for_key(nonce),
                    aws_lc::Aad::from(header),
                    in_out,
                )
                .map(|tag| tag.as_ref().try_into())
                .ok(),
            Cipher::Ring(key) => key
                .seal_in_place_separate_tag(
                    ring::Nonce::assume_unique_for_key(nonce),
                    ring::Aad::from(header),
                    in_out,
                )
                .map(|tag| tag.as_ref().try_into())
                .ok(),
        };
        tag.and_then(Result::ok).ok_or(RecordError::Keys)
    }

    /// Decrypts `in_out[at..]`, a ciphertext and its tag, to the beginning of `in_out`.
    pub(super) fn open<'b>(
        &mut self,
        header: [u8; HEADER_LEN],
        in_out: &'b mut [u8],
        at: usize,
    ) -> Result<&'b mut [u8], RecordError> {
        let nonce = self.next_nonce()?;
        let opened = match &self.cipher {
            Cipher::AwsLc(key) => key
                .open_within(
                    aws_lc::Nonce::assume_unique_for_key(nonce),
                    aws_lc::Aad::from(header),
                    in_out,
                    at..,
                )
                .ok(),
            Cipher::Ring(key) => key
                .open_within(
                    ring::Nonce::assume_unique_for_key(nonce),
                    ring::Aad::from(header),
                    in_out,
                    at..,
                )
                .ok(),
        };
        opened.ok_or(RecordError::Tampered)
    }

    fn next_nonce(&mut self) -> Result<[u8; NONCE_LEN], RecordError> {
        let mut nonce = self.iv;
        let number = self.records.to_be_bytes();
        for (byte, number) in nonce.iter_mut().rev().zip(number.iter().rev()) {
            *byte ^= number;
        }
        self.records = self.records.checked_add(1).ok_or(RecordError::Keys)?;
        Ok(nonce)
    }
}

impl Cipher {
    fn aws_lc(algorithm: &'static aws_lc::Algorithm, key: &AeadKey) -> Option<Self> {
        let key = key.as_ref().get(..algorithm.key_len())?;
        let key = aws_lc::UnboundKey::new(algorithm, key).ok()?;
        Some(Self::AwsLc(aws_lc::LessSafeKey::new(key)))
    }

    fn ring(algorithm: &'static ring::Algorithm, key: &AeadKey) -> Option<Self> {
        let key = key.as_ref().get(..algorithm.key_len())?;
        let key = ring::UnboundKey::new(algorithm, key).ok()?;
        Some(Self::Ring(Box::new(ring::LessSafeKey::new(key))))
    }
}

/// Where the next keys come from (RFC 8446, section 7.2).
pub(super) struct KeySchedule {
    library: Library,
    records_max: u64,
}

/// What the library keeps of a connection, at either end.
pub(super) enum Library {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// The keys after a handshake.
pub(super) struct Keys {
    pub(super) schedule: KeySchedule,
    pub(super) receiving: Key,
    pub(super) sending: Key,
}

impl Keys {
    pub(super) fn new(library: Library, secrets: &ExtractedSecrets) -> Result<Self, RecordError> {
        let suite = match &library {
            Library::Client(library) => library.negotiated_cipher_suite(),
            Library::Server(library) => library.negotiated_cipher_suite(),
        };
        let suite = suite.tls13().ok_or(RecordError::Keys)?;
        Ok(Self {
            schedule: KeySchedule {
                library,
                records_max: suite.common.confidentiality_limit,
            },
            receiving: Key::new(secrets.rx.0, &secrets.rx.1)?,
            sending: Key::new(secrets.tx.0, &secrets.tx.1)?,
        })
    }
}

impl KeySchedule {
    /// How many records a key may seal (RFC 8446, section 5.5).
    pub(super) const fn records_max(&self) -> u64 {
        self.records_max
    }

    /// Makes keys end sooner.
    #[cfg(test)]
    pub(super) const fn limit(&mut self, records_max: u64) {
        self.records_max = records_max;
    }

    /// The key that seals from now on.
    pub(super) fn next_sending(&mut self) -> Result<Key, RecordError> {
        let next = match &mut self.library {
            Library::Client(library) => library.update_tx_secret(),
            Library::Server(library) => library.update_tx_secret(),
        };
        let (records, secrets) = next.map_err(|_| RecordError::Keys)?;
        Key::new(records, &secrets)
    }

    /// The key that opens from now on.
    pub(super) fn next_receiving(&mut self) -> Result<Key, RecordError> {
        let next = match &mut self.library {
            Library::Client(library) => library.update_rx_secret(),
            Library::Server(library) => library.update_rx_secret(),
        };
        let (records, secrets) = next.map_err(|_| RecordError::Keys)?;
        Key::new(records, &secrets)
    }
}
