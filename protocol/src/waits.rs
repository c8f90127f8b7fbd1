//! What a clone waits for, and so which stage limits it.
//!
//! The data connections of an end are always somewhere: they wait for their own volume, for their peer, or for
//! the bandwidth limit. Where they are most of the time is what limits the clone as that end sees it. The threads
//! behind a volume tell how much of their time is storage and how much computing. What an end sees only as
//! its peer is divided by what the peer sees.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where an end's time went, in seconds, added over all data connections, or all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Waits {
    /// Data connections waited for this end's volume: for a chunk that was read, or for a buffer that
    /// was written.
    #[serde(default)]
    pub volume_wait_seconds: f64,
    /// They waited for the peer, encryption included.
    #[serde(default)]
    pub peer_wait_seconds: f64,
    /// They waited for the bandwidth limit.
    #[serde(default)]
    pub throttle_wait_seconds: f64,
    /// Threads read or wrote the volume.
    #[serde(default)]
    pub volume_io_seconds: f64,
    /// They looked for zeros, and hashed.
    #[serde(default)]
    pub volume_cpu_seconds: f64,
}

impl Waits {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let since = |now: f64, then: f64| (now - then).max(0.0);
        Self {
            volume_wait_seconds: since(self.volume_wait_seconds, earlier.volume_wait_seconds),
            peer_wait_seconds: since(self.peer_wait_seconds, earlier.peer_wait_seconds),
            throttle_wait_seconds: since(self.throttle_wait_seconds, earlier.throttle_wait_seconds),
            volume_io_seconds: since(self.volume_io_seconds, earlier.volume_io_seconds),
            volume_cpu_seconds: since(self.volume_cpu_seconds, earlier.volume_cpu_seconds),
        }
    }

    /// The parts of the data connections' time that went to the volume, the peer and the bandwidth limit;
    /// none before they waited for anything.
    fn parts(&self) -> Option<[f64; 3]> {
        let parts = [
            self.volume_wait_seconds,
            self.peer_wait_seconds,
            self.throttle_wait_seconds,
        ];
        let sum: f64 = parts.iter().sum();
        (sum > 0.0).then(|| parts.map(|part| part / sum))
    }

    /// The part of the work behind the volume that is storage; all of it where nothing is known of the
    /// rest, as with trees.
    fn io_part(&self) -> f64 {
        let sum = self.volume_io_seconds + self.volume_cpu_seconds;
        if sum > 0.0 {
            self.volume_io_seconds / sum
        } else {
            1.0
        }
    }
}

/// What holds a clone up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Reading at the source.
    SourceRead,
    /// Looking for zeros and hashing at the source.
    SourceCpu,
    /// The bandwidth limit.
    Throttle,
    /// The way between the agents, encryption included.
    Network,
    /// Hashing at the target.
    TargetCpu,
    /// Writing at the target.
    TargetWrite,
    /// Something behind the agent that tells: from the source, the network or the target; from the
    /// target, the network or the source.
    Peer,
    /// Nothing has moved yet, or a later version knows more.
    #[serde(other)]
    Unknown,
}

impl Limit {
    /// Every one that can be told.
    pub const ALL: [Self; 7] = [
        Self::SourceRead,
        Self::SourceCpu,
        Self::Throttle,
        Self::Network,
        Self::TargetCpu,
        Self::TargetWrite,
        Self::Peer,
    ];

    /// The word for it in reports and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::SourceRead => "source_read",
            Self::SourceCpu => "source_cpu",
            Self::Throttle => "throttle",
            Self::Network => "network",
            Self::TargetCpu => "target_cpu",
            Self::TargetWrite => "target_write",
            Self::Peer => "peer",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::SourceRead => "source read",
            Self::SourceCpu => "source CPU",
            Self::Throttle => "throttle",
            Self::Network => "network",
            Self::TargetCpu => "target CPU",
            Self::TargetWrite => "target write",
            Self::Peer => "peer",
        })
    }
}

/// What holds a clone up most, and its share of the time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limited {
    /// What.
    pub limit: Limit,
    /// From 0 to 1.
    pub share: f64,
}

impl Limited {
    /// Nothing has moved yet.
    pub const UNKNOWN: Self = Self {
        limit: Limit::Unknown,
        share: 0.0,
    };
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.0} %", self.limit, self.share * 100.0)
    }
}

/// What limits a clone as its source sees it.
#[must_use]
pub fn limit_at_source(source: &Waits) -> Limited {
    largest(source.parts().map(|[volume, peer, throttle]| {
        let io = source.io_part();
        vec![
            (Limit::SourceRead, volume * io),
            (Limit::SourceCpu, volume * (1.0 - io)),
            (Limit::Throttle, throttle),
            (Limit::Peer, peer),
        ]
    }))
}

/// What limits a clone as its target sees it.
#[must_use]
pub fn limit_at_target(target: &Waits) -> Limited {
    largest(target.parts().map(|[volume, peer, throttle]| {
        let io = target.io_part();
        vec![
            (Limit::TargetWrite, volume * io),
            (Limit::TargetCpu, volume * (1.0 - io)),
            (Limit::Throttle, throttle),
            (Limit::Peer, peer),
        ]
    }))
}

/// What limits a clone whose both ends can be seen: what the source sees as its peer is the target as far as the
/// target waits for its own volume, and the network else.
#[must_use]
pub fn limit_of_both(source: &Waits, target: &Waits) -> Limited {
    let both = source.parts().zip(target.parts());
    largest(both.map(
        |([volume, peer, throttle], [target_volume, target_peer, target_throttle])| {
            let (source_io, target_io) = (source.io_part(), target.io_part());
            vec![
                (Limit::SourceRead, volume * source_io),
                (Limit::SourceCpu, volume * (1.0 - source_io)),
                (Limit::Throttle, throttle + peer * target_throttle),
                (Limit::Network, peer * target_peer),
                (Limit::TargetCpu, peer * target_volume * (1.0 - target_io)),
                (Limit::TargetWrite, peer * target_volume * target_io),
            ]
        },
    ))
}

fn largest(shares: Option<Vec<(Limit, f64)>>) -> Limited {
    let shares = shares.into_iter().flatten();
    shares
        .map(|(limit, share)| Limited { limit, share })
        .max_by(|one, other| one.share.total_cmp(&other.share))
        .unwrap_or(Limited::UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(volume: f64, peer: f64, throttle: f64, io: f64, cpu: f64) -> Waits {
        Waits {
            volume_wait_seconds: volume,
            peer_wait_seconds: peer,
            throttle_wait_seconds: throttle,
            volume_io_seconds: io,
            volume_cpu_seconds: cpu,
        }
    }

    #[test]
    fn the_longest_wait_is_the_limit() {
        let check = |source: Waits, target: Waits, limit: Limit, share: f64| {
            let limited = limit_of_both(&source, &target);
            assert_eq!(limited.limit, limit, "{source:?} {target:?}");
            assert!((limited.share - share).abs() < 1e-9, "{limited}");
        };
        let idle = waits(1.0, 9.0, 0.0, 1.0, 1.0);
        // Each end waits for the other.
        check(idle, idle, Limit::Network, 0.81);
        let reading = waits(9.0, 1.0, 0.0, 3.0, 1.0);
        check(reading, idle, Limit::SourceRead, 0.675);
        let hashing = waits(9.0, 1.0, 0.0, 1.0, 3.0);
        check(hashing, idle, Limit::SourceCpu, 0.675);
        let throttled = waits(1.0, 1.0, 8.0, 1.0, 1.0);
        check(throttled, idle, Limit::Throttle, 0.8);
        // A tree's threads don't tell what they do: it counts as storage.
        let writing = waits(8.0, 2.0, 0.0, 0.0, 0.0);
        check(idle, writing, Limit::TargetWrite, 0.72);
        let checking = waits(8.0, 2.0, 0.0, 1.0, 7.0);
        check(idle, checking, Limit::TargetCpu, 0.63);
    }

    #[test]
    fn an_end_alone_sees_its_peer_where_both_see_the_network() {
        let idle = waits(1.0, 9.0, 0.0, 1.0, 1.0);
        assert_eq!(limit_at_source(&idle).limit, Limit::Peer);
        assert_eq!(limit_at_target(&idle).limit, Limit::Peer);
        assert_eq!(limit_at_source(&Waits::default()), Limited::UNKNOWN);
        assert_eq!(limit_of_both(&idle, &Waits::default()), Limited::UNKNOWN);
    }

    #[test]
    fn what_was_before_does_not_count() {
        let before = waits(100.0, 1.0, 0.0, 6.0, 5.0);
        let now = waits(101.0, 10.0, 0.0, 6.5, 5.5);
        assert_eq!(limit_at_source(&now).limit, Limit::SourceRead);
        assert_eq!(limit_at_source(&now.since(&before)).limit, Limit::Peer);
    }

    #[test]
    fn labels_are_those_of_json() {
        for limit in Limit::ALL {
            assert_eq!(serde_json::to_value(limit).unwrap(), limit.label());
        }
        let later: Limit = serde_json::from_str("\"moonlight\"").unwrap();
        assert_eq!(later, Limit::Unknown);
    }
}
