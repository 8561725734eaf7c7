"""What the actors said of themselves, for Status and for the clients that look for them."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from turnwise._channels import WILDCARDS
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
    peer: str = ""
    """Where the stream comes from, as gRPC says it: `ipv4:10.0.0.5:41234`."""
    address: str = ""
    """Where clients reach the actor; empty until the first report."""
    journaled_through: int = 0
    """As the actor said last."""

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
    _listed: training_pb2.ActorList = field(default_factory=training_pb2.ActorList)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _closed: bool = False

    def see(self, presence: Presence, report: training_pb2.ActorReport) -> None:
        """Notes a report that came on a stream; one without an address is nobody's."""
        if not report.address:
            return
        address = _reachable(report.address, presence.peer)
        came = presence.address != address
        if came:
            self.lose(presence)
            presence.address = address
            if address not in self._known:
                self._forget()
            actor = self._known.setdefault(address, _Actor(report, 0))
            actor.streams += 1
        actor = self._known[address]
        turned = actor.report.draining != report.draining
        actor.report, actor.last_seen_ms = report, now_ms()
        if came or turned:
            self._list()

    def lose(self, presence: Presence) -> None:
        """Notes that a stream has ended."""
        actor = self._known.get(presence.address)
        if actor is not None:
            actor.streams -= 1
            self._list()
        presence.address = ""

    def status(self) -> list[training_pb2.ActorStatus]:
        """All known actors, by address."""
        return [
            training_pb2.ActorStatus(
                report=actor.report, last_seen_ms=actor.last_seen_ms, connected=actor.streams > 0
            )
            for _, actor in sorted(self._known.items())
        ]

    async def lists(self) -> AsyncIterator[training_pb2.ActorList]:
        """Where clients find actors: now, then after each change, until `close`."""
        told = None
        while not self._closed:
            changed = self._changed
            if told != self._listed:
                told = self._listed
                yield told
            else:
                await changed.wait()

    def close(self) -> None:
        """Ends the lists as they are: that the actors' streams end now says nothing about the actors."""
        self._closed = True
        self._wake()

    def _list(self) -> None:
        """Makes the list anew, and tells of it if it is another one."""
        known = sorted(self._known.items())
        leaving = [address for address, actor in known if actor.report.draining]
        here = [address for address, actor in known if actor.streams > 0 and not actor.report.draining]
        listed = training_pb2.ActorList(addresses=here, draining=leaving)
        if listed != self._listed:
            self._listed = listed
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _forget(self) -> None:
        """Makes room for one more actor; those that are connected stay."""
        away = sorted(
            (actor.last_seen_ms, address) for address, actor in self._known.items() if actor.streams == 0
        )
        surplus = len(self._known) + 1 - _MAX_ACTORS
        for position, (last_seen_ms, address) in enumerate(away):
            if position < surplus or now_ms() - last_seen_ms > _FORGET_AFTER_MS:
                del self._known[address]


def _reachable(address: str, peer: str) -> str:
    """The address of an actor that listens everywhere, with the host that its stream comes from.

    One on the learner's own machine keeps the wildcard: clients know that machine by a name of their own.
    """
    host, _, port = address.rpartition(":")
    if host not in WILDCARDS:
        return address
    family, _, source = peer.partition(":")
    source = source.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]")
    try:
        own = family not in ("ipv4", "ipv6") or ipaddress.ip_address(source.strip("[]")).is_loopback
    except ValueError:  # with a zone: no address for others
        own = True
    return address if own else f"{source}:{port}"
