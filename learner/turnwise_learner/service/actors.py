"""What the actors said of themselves, for Status."""

from dataclasses import dataclass, field

from turnwise.v1 import training_pb2
from turnwise_learner.service.journal import now_ms

_FORGET_AFTER_MS = 3_600_000
_MAX_ACTORS = 1024


@dataclass
class _Actor:
    report: training_pb2.ActorReport
    last_seen_ms: int
    streams: int = 0


@dataclass(eq=False)
class Presence:
    """One stream of an actor, from its first report to the end of the stream."""

    actors: "Actors"
    address: str = ""
    """Empty until the first report."""

    def report(self, report: training_pb2.ActorReport) -> None:
        """Takes the actor's word; the newest replaces all earlier ones of the same address."""
        self.actors.see(self, report)

    def leave(self) -> None:
        """The stream has ended."""
        self.actors.lose(self)


@dataclass
class Actors:
    """Actors by address; those away for an hour, and the longest away beyond 1,024, are forgotten."""

    _known: dict[str, _Actor] = field(default_factory=dict)

    def see(self, presence: Presence, report: training_pb2.ActorReport) -> None:
        """Notes a report that came on a stream; one without an address is nobody's."""
        if not report.address:
            return
        if presence.address != report.address:
            self.lose(presence)
            presence.address = report.address
            if report.address not in self._known:
                self._forget()
            actor = self._known.setdefault(report.address, _Actor(report, 0))
            actor.streams += 1
        actor = self._known[report.address]
        actor.report, actor.last_seen_ms = report, now_ms()

    def lose(self, presence: Presence) -> None:
        """Notes that a stream has ended."""
        actor = self._known.get(presence.address)
        if actor is not None:
            actor.streams -= 1
        presence.address = ""

    def status(self) -> list[training_pb2.ActorStatus]:
        """All known actors, by address."""
        return [
            training_pb2.ActorStatus(
                report=actor.report, last_seen_ms=actor.last_seen_ms, connected=actor.streams > 0
            )
            for _, actor in sorted(self._known.items())
        ]

    def _forget(self) -> None:
        """Makes room for one more actor; those that are connected stay."""
        away = sorted(
            (actor.last_seen_ms, address) for address, actor in self._known.items() if actor.streams == 0
        )
        surplus = len(self._known) + 1 - _MAX_ACTORS
        for position, (last_seen_ms, address) in enumerate(away):
            if position < surplus or now_ms() - last_seen_ms > _FORGET_AFTER_MS:
                del self._known[address]
