"""Keeps a Router's addresses as the sources of a client tell them. Pure, like the Router that it serves.

What a source lists is used at once. An address that it no longer lists *lingers*: it is used for another
`LINGER_S`, and goes when it is not back until then, so that a learner that has just started, or a name
server that tells of some only, takes nothing away; one that is listed as leaving goes at once. While a list
is empty, or cannot be had, nothing goes.
"""

import logging
import math
from collections.abc import Callable, Sequence

from turnwise._channels import LEARNER, NAME, WILDCARDS, Connection, Source, is_host_and_port
from turnwise._errors import AccessDenied, ActorUnavailable, NotSupported, TurnwiseError, invalid
from turnwise._routing import Router

_log = logging.getLogger("turnwise")
LINGER_S = 30.0
"""How long an address is used that is listed no longer; higher: it takes longer to forget dead ones."""


class Directory:
    """What each source has said last, merged into one list of addresses.

    Args:
        connection: The addresses and sources given by the caller.
        router: Gets the merged list.
        clock: Monotonic seconds, the router's.
    """

    def __init__(self, connection: Connection, router: Router, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._router = router
        self._clock = clock
        # Until when each address of a source is used; inf: it is listed.
        self._until: dict[Source, dict[str, float]] = {source: {} for source in connection.sources}
        self._errors: dict[Source, TurnwiseError] = {
            source: ActorUnavailable(f"{source} has not answered yet") for source in connection.sources
        }
        self._say_why()

    def listed(self, source: Source, addresses: Sequence[str], leaving: Sequence[str] = ()) -> None:
        """A source has told of its addresses, and of those that are about to go."""
        found = [_reached(source, address) for address in addresses if is_host_and_port(address)]
        admitted = [target for target in found if self._connection.admits(target)]
        if not admitted:
            self._miss(source, _nothing_in(source, found))
            return
        self._errors.pop(source, None)
        now, until = self._clock(), self._until[source]
        gone = {_reached(source, address) for address in leaving}
        for target in set(until) - set(admitted):
            if target in gone:
                del until[target]
            elif until[target] == math.inf:
                until[target] = now + LINGER_S
                self._router.later(LINGER_S, self._apply)
        until.update(dict.fromkeys(admitted, math.inf))
        if source.kind == NAME:
            named = set(admitted) - set(self._connection.targets)
            self._connection.authorities.update(dict.fromkeys(named, source.target))
        self._apply()

    def failed(self, source: Source, error: TurnwiseError) -> None:
        """A source could not be asked; what it told before stays."""
        kind = type(error) if isinstance(error, AccessDenied | NotSupported) else ActorUnavailable
        self._miss(source, kind(f"{source}: {error.message}", code=error.code, reason=error.reason))

    def _miss(self, source: Source, error: TurnwiseError) -> None:
        if self._until[source] and source not in self._errors:
            _log.info("%s; its last list of actors stays in use", error)
        self._until[source] = dict.fromkeys(self._until[source], math.inf)
        self._errors[source] = error
        self._say_why()

    def _say_why(self) -> None:
        """Why there is no address, as long as there is none: rather what may pass than what will not."""
        errors = list(self._errors.values())
        if errors:
            passing = [error for error in errors if isinstance(error, ActorUnavailable)]
            self._router.nobody_because((passing or errors)[0])

    def _apply(self) -> None:
        now = self._clock()
        targets = list(self._connection.targets)
        for until in self._until.values():
            for target in [each for each in until if until[each] <= now]:
                del until[target]
            targets += until
        self._router.set_addresses(targets)


def _nothing_in(source: Source, found: Sequence[str]) -> TurnwiseError:
    if found:
        return invalid("tls", None, f"True or a CA file: credentials go to {found[0]}, which {source} lists")
    return ActorUnavailable(f"{source} lists no actor")


def _reached(source: Source, address: str) -> str:
    """The address as it is reached from here: a learner names its own machine with a wildcard."""
    host, _, port = address.rpartition(":")
    if source.kind == LEARNER and host in WILDCARDS:
        return f"{source.target.rpartition(':')[0]}:{port}"
    return address
