"""Command lines of learners and actors, as every deployment starts them: what follows `python`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from turnwise_actor.access.server_access import ServerAccess
from turnwise_deploy.data_folder import DataFolder


@dataclass(frozen=True)
class Listening:
    """Where a process listens, and for whom."""

    address: str
    """HOST:PORT."""
    access: ServerAccess
    metrics: str = ""
    """HOST:PORT of its metrics; empty: they are served nowhere."""

    def arguments(self) -> tuple[str, ...]:
        """As both processes take them."""
        metrics = ("--metrics-listen", self.metrics) if self.metrics else ()
        return ("--listen", self.address, *metrics, *self.access.arguments())


def learner_command(
    domain: Path, folder: DataFolder, listening: Listening, door: str, further: Iterable[str]
) -> tuple[str, ...]:
    """Of a learner; `door` is the HOST:PORT of its local door, empty where it takes any."""
    local = ("--local-listen", door) if door else ()
    places = ("--domain", str(domain), "--data", str(folder.path))
    return ("-m", "turnwise_learner", *places, *listening.arguments(), *local, *further)


def actor_command(
    domain: Path, folder: DataFolder, listening: Listening, learner: str, further: Iterable[str]
) -> tuple[str, ...]:
    """Of an actor of the learner at HOST:PORT."""
    places = ("--domain", str(domain), "--keys", str(folder.keys), "--spool", str(folder.spool))
    return ("-m", "turnwise_actor", *places, "--learner", learner, *listening.arguments(), *further)
