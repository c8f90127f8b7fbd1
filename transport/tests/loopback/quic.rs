//! What is QUIC's own: several streams on one connection, a path that changes, a port beside that of
//! TCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep};
use volferry_transport::{
    Accepted, Connector, Dialer, ListenLimits, Rejection, Role, SecureStream, Transport,
    TransportChoice, TransportError,
};

use crate::support::{Clone, Target, patiently};

async fn say(stream: &mut SecureStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    stream.flush().await.unwrap();
}

async fn hear(stream: &mut SecureStream, text: &[u8]) {
    let mut heard = vec![0; text.len()];
    patiently(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, text);
}

/// A stream, greeted by the source and heard of by the target.
async fn open(dialer: &Dialer, target: &mut Target, is_first: bool) -> [SecureStream; 2] {
    let dialed = if is_first {
        dialer.connect().await
    } else {
        dialer.open().await
    };
    let mut ours = dialed.unwrap();
    say(&mut ours, b"?").await;
    let Accepted { mut stream, .. } = patiently(target.listener.accept()).await.unwrap();
    hear(&mut stream, b"?").await;
    [ours, stream]
}

#[tokio::test]
async fn the_streams_of_a_session_share_a_connection_and_the_next_session_has_its_own() {
    let clone = Clone::over(Transport::Quic);
    let mut target = Target::new(clone.good(Role::Target)).await;
    let dialer = clone.dialer(target.address(), clone.good(Role::Source));
    let first = open(&dialer, &mut target, true).await;
    let more = open(&dialer, &mut target, false).await;
    // Each connection has a port of its own, so the target tells them apart by the address.
    let address = first[1].peer_address();
    assert_eq!(more[1].peer_address(), address);
    let next = open(&dialer, &mut target, true).await;
    assert_ne!(next[1].peer_address(), address);
    // Without a stream there is no session that another could belong to.
    drop((first, more, next));
    let error = dialer.open().await.unwrap_err();
    assert!(matches!(error, TransportError::Closed { .. }), "{error}");
}

/// The control connection must get through while a slow target leaves its data unread.
#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_hold_up_the_others() {
    let clone = Clone::over(Transport::Quic);
    let mut target = Target::new(clone.good(Role::Target)).await;
    let dialer = clone.dialer(target.address(), clone.good(Role::Source));
    let [mut control, mut their_control] = open(&dialer, &mut target, true).await;
    let mut data = Vec::new();
    for _ in 0..4 {
        data.push(open(&dialer, &mut target, false).await);
    }
    let stuck = data.iter_mut().map(|[ours, _theirs]| async {
        let lot = vec![7; 1 << 20];
        while ours.write_all(&lot).await.is_ok() {}
    });
    let stuck = async {
        let mut stuck: Vec<_> = stuck.map(Box::pin).collect();
        std::future::poll_fn(|cx| {
            for write in &mut stuck {
                assert!(write.as_mut().poll(cx).is_pending());
            }
            std::task::Poll::<()>::Pending
        })
        .await;
    };
    let talk = async {
        for _ in 0..50 {
            say(&mut control, b"ping").await;
            hear(&mut their_control, b"ping").await;
            say(&mut their_control, b"pong").await;
            hear(&mut control, b"pong").await;
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = stuck => unreachable!("it never ends"),
        () = talk => {}
    }
}

/// A relay of datagrams between one source and the target, whose own port can change.
async fn relay(port: UdpSocket, target: SocketAddr, change: Arc<tokio::sync::Notify>) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut mapped = UdpSocket::bind(any).await.unwrap();
    let mut source = None;
    let (mut out, mut back) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            received = port.recv_from(&mut out) => {
                let (len, from) = received.unwrap();
                source = Some(from);
                mapped.send_to(&out[..len], target).await.unwrap();
            }
            received = mapped.recv_from(&mut back) => {
                let (len, _) = received.unwrap();
                port.send_to(&back[..len], source.unwrap()).await.unwrap();
            }
            () = change.notified() => mapped = UdpSocket::bind(any).await.unwrap(),
        }
    }
}

/// As it happens behind a NAT that has forgotten its mapping.
#[tokio::test]
async fn a_connection_outlives_a_change_of_its_address() {
    let clone = Clone::over(Transport::Quic);
    let mut target = Target::new(clone.good(Role::Target)).await;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let port = UdpSocket::bind(any).await.unwrap();
    let address = port.local_addr().unwrap();
    let change = Arc::new(tokio::sync::Notify::new());
    let relay = tokio::spawn(relay(port, target.address(), Arc::clone(&change)));
    let dialer = clone.dialer(address, clone.good(Role::Source));
    let [mut ours, mut theirs] = open(&dialer, &mut target, true).await;
    for _ in 0..3 {
        change.notify_one();
        sleep(Duration::from_millis(50)).await;
        say(&mut ours, b"still here").await;
        hear(&mut theirs, b"still here").await;
        say(&mut theirs, b"so am I").await;
        hear(&mut ours, b"so am I").await;
    }
    relay.abort();
}

#[tokio::test]
async fn a_target_offers_what_it_is_told() {
    let clone = Clone::new();
    for (offered, transport) in [
        (TransportChoice::Tls, Transport::Tls),
        (TransportChoice::Quic, Transport::Quic),
    ] {
        let limits = ListenLimits {
            transport: offered,
            ..ListenLimits::default()
        };
        let mut target = Target::with_limits(clone.good(Role::Target), limits).await;
        let address = target.address();
        for tried in [TransportChoice::Tls, TransportChoice::Quic] {
            let dialer =
                crate::support::dialer(address, clone.good(Role::Source)).with_transport(tried);
            if tried == offered {
                let [ours, _] = open(&dialer, &mut target, true).await;
                assert_eq!(ours.transport(), transport);
            } else {
                let in_vain = dialer.with_limits(volferry_transport::DialLimits {
                    handshake_timeout: Duration::from_secs(1),
                    ..Default::default()
                });
                let error = in_vain.dial().await.unwrap_err();
                assert!(!error.is_identity(), "{error}");
            }
        }
    }
}

/// Whoever doesn't open a stream keeps a place among the handshakes only for their time.
#[tokio::test]
async fn connections_without_a_stream_are_bounded_in_number_and_time() {
    let clone = Clone::over(Transport::Quic);
    let limits = ListenLimits {
        handshakes_max: 2,
        handshake_timeout: Duration::from_secs(4),
        ..ListenLimits::default()
    };
    let mut target = Target::with_limits(clone.good(Role::Target), limits).await;
    let dialer = clone.dialer(target.address(), clone.good(Role::Source));
    let begun = Instant::now();
    // The second one is asked to come again with a token, as the target is busy by then.
    let idle = [dialer.dial().await.unwrap(), dialer.dial().await.unwrap()];
    let error = dialer.dial().await.unwrap_err();
    assert!(!error.is_identity(), "{error}");
    assert_eq!(target.rejection().await, Rejection::TooManyConnections);
    let [mut first, _second] = idle;
    let ended = patiently(first.read_u8()).await.unwrap_err();
    assert!(begun.elapsed() > Duration::from_secs(3), "{ended}");
    target.lets_in(&clone, Role::Source).await;
}

#[tokio::test]
async fn packets_that_are_not_quic_are_not_answered_and_hold_up_nobody() {
    let clone = Clone::over(Transport::Quic);
    let mut target = Target::new(clone.good(Role::Target)).await;
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for text in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 1200], &[0; 5], &[]] {
        stranger.send_to(text, target.address()).await.unwrap();
    }
    target.lets_in(&clone, Role::Source).await;
}

#[tokio::test]
async fn closing_the_listener_leaves_the_streams_that_were_let_in() {
    let clone = Clone::over(Transport::Quic);
    let mut target = Target::new(clone.good(Role::Target)).await;
    let dialer = clone.dialer(target.address(), clone.good(Role::Source));
    let [mut ours, mut theirs] = open(&dialer, &mut target, true).await;
    patiently(target.listener.close()).await;
    say(&mut ours, b"still here").await;
    hear(&mut theirs, b"still here").await;
    theirs.shutdown().await.unwrap();
    let mut rest = Vec::new();
    patiently(ours.read_to_end(&mut rest)).await.unwrap();
    let late = dialer.with_limits(volferry_transport::DialLimits {
        handshake_timeout: Duration::from_secs(1),
        ..Default::default()
    });
    late.dial().await.unwrap_err();
}
