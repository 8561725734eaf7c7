"""Everything about an actor process that can be set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.server_access import ServerAccess


@dataclass(frozen=True)
class TokenConfig:
    """Limits of the continuation token."""

    max_age_s: float = 90 * 86_400
    """Older tokens are refused by Act. Raise it and retired keys must be kept for longer."""
    clock_leeway_s: float = 300.0
    """How far the clocks of two actors may differ before a token's age is doubted."""
    max_facts: int = 8
    """Unsettled facts carried in a token; beyond it a reply waits for a disk's fsync."""
    max_fact_bytes: int = 16_384
    """Their size together. Raise it and every request and reply grows while the learner is away."""
    max_token_bytes: int = 65_536
    """Longer tokens are refused unread."""
    max_branches: int = 64
    """Different continuations of one decision at this actor: somebody who goes back and tries another way
    makes one each time. Raise it and a token that fell into wrong hands can be used for more."""
    max_branched: int = 20_000
    """Decisions whose continuations are remembered, those used last; up to twice as many are (4 MB)."""


@dataclass(frozen=True)
class UplinkConfig:
    """How facts go to the learner."""

    max_pending_facts: int = 10_000
    """Facts held in memory while the learner is away; beyond it the oldest go to the disk spool."""
    max_batch_facts: int = 512
    """Facts in one message. Raise it and a lone feedback may wait behind a larger commit."""
    linger_ms: float = 5.0
    """Least time between batches that nobody waits for. Raise it and busy actors spend less on sending."""
    max_batches_in_flight: int = 32
    """Batches sent and not yet acknowledged; beyond it the sender waits."""
    reach_s: float = 1.0
    """On shutdown: how long to try for a learner that is away, before what is left is spooled."""
    settle_wait_ms: float = 300.0
    """How long feedback waits for the learner before it settles for the disk."""
    report_interval_s: float = 1.0
    """Time between reports to the learner."""
    ack_timeout_s: float = 5.0
    """A learner that leaves a batch unanswered for so long counts as away: the stream is begun anew."""
    reconnect_min_s: float = 0.1
    """First pause after a broken stream; doubles up to `reconnect_max_s`, with jitter."""
    reconnect_max_s: float = 2.0
    """Longest pause between two attempts. Raise it and the learner's return is noticed later."""
    max_settled_keys: int = 20_000
    """Keys of settled facts remembered at most (about 2 MB), and at least half as many: tokens drop them
    sooner."""


@dataclass(frozen=True)
class SpoolConfig:
    """The disk that stands in for the learner."""

    max_bytes: int = 256 * 1024 * 1024
    """Beyond it turns are answered with recorded=false and feedback is refused."""
    segment_bytes: int = 1024 * 1024
    """Size at which the next file is begun; a file is deleted when all of it is acknowledged."""
    adopt_interval_s: float = 30.0
    """Time between looks for the spools of actors that are gone."""


@dataclass(frozen=True)
class StreamConfig:
    """Limits of a Converse stream."""

    max_in_flight: int = 256
    """Requests of one stream being answered; beyond it a request gets RESOURCE_EXHAUSTED."""
    default_timeout_ms: int = 10_000
    """Time for a request that names none."""
    life_s: float = 600.0
    """Age at which a stream is asked to move. Raise it and load spreads more slowly over new actors."""
    life_jitter_s: float = 120.0
    """Spread of that age, either way, so that streams do not all move at once."""
    quiet_s: float = 1.0
    """A stream asked to move is closed after so long without a request."""
    move_s: float = 8.0
    """... and after so long in any case, once what is in flight is answered."""


@dataclass(frozen=True)
class ActorConfig:
    """One actor process."""

    domain_file: Path
    learner_address: str
    listen_address: str
    """host:port; port 0 lets the system choose."""
    key_file: Path
    spool_folder: Path
    """Shared by the actors of a machine: each has a folder of its own inside."""
    policy_path: Path | None = None
    """A policy file, or a folder whose newest is served, until the learner sends a newer one."""
    address_file: Path | None = None
    """Written with host:port once the actor listens."""
    metrics_listen: str | None = None
    """host:port where Prometheus reads metrics, over plain HTTP. None: nowhere."""
    max_message_bytes: int = 4 * 1024 * 1024
    """Larger requests are refused by gRPC with RESOURCE_EXHAUSTED before they are read."""
    drain_s: float = 10.0
    """On SIGTERM: the longest wait for calls in flight, and again for the learner to take the last facts."""
    token: TokenConfig = TokenConfig()
    uplink: UplinkConfig = UplinkConfig()
    spool: SpoolConfig = SpoolConfig()
    stream: StreamConfig = StreamConfig()
    access: ServerAccess = field(default_factory=ServerAccess)
    """Who may connect, over what."""
    learner_access: ClientAccess = field(default_factory=ClientAccess)
    """What this actor brings to the learner."""

    def __post_init__(self) -> None:
        _check_address("listen_address", self.listen_address, smallest_port=0)
        _check_address("learner_address", self.learner_address, smallest_port=1)
        if self.metrics_listen is not None:
            _check_address("metrics_listen", self.metrics_listen, smallest_port=0)
        self.access.check(self.listen_address)
        self.learner_access.check(self.learner_address)


def _check_address(name: str, address: str, smallest_port: int) -> None:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and smallest_port <= int(port) <= 65_535):
        raise ValueError(f"{name}: got {address!r}; wanted HOST:PORT, port {smallest_port} to 65535")
