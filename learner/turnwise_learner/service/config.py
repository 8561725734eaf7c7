"""The configuration of the learner's service process."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from turnwise._channels import stays_here
from turnwise_actor.access.client_access import LOCAL_TOKEN
from turnwise_actor.access.server_access import ServerAccess
from turnwise_learner.store import StoreConfig

_FOLDERS = ("checkpoints", "policies", "spool", "logs")
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


@dataclass(frozen=True)
class ServiceConfig:
    """Everything the service is told at its start."""

    domain: Path
    """The domain file."""
    data: Path
    """The data folder; created where missing. On a local disk: the journal relies on its locks and fsync."""
    listen: str = "127.0.0.1:50050"
    """HOST:PORT; port 0 lets the system choose, see `learner.address` in the data folder."""
    access: ServerAccess = field(default_factory=ServerAccess)
    """Who may connect at `listen`, over what."""
    local_listen: str = "127.0.0.1:0"
    """Loopback address of the door for this machine's own processes, the trainer among them: plain text, for
    whoever can read `local_token` of the data folder. Its address is in `learner.local` there."""
    metrics_listen: str | None = None
    """HOST:PORT where Prometheus reads metrics, over plain HTTP. None: nowhere."""
    start_trainer: bool = True
    """False: no trainer child; a trainer started elsewhere may attach."""
    trainer_command: tuple[str, ...] = (sys.executable, "-m", "turnwise_learner.trainer")
    """Program of the trainer child; --data, --domain, --service, --parent-pid and the options follow."""
    trainer_options: tuple[str, ...] = ()
    """Options handed to the trainer as they are."""
    max_pending_bytes: int = 32 << 20
    """Facts held in memory for the next commit; beyond it no more is read from the actors' streams."""
    max_message_bytes: int = 32 << 20
    """Largest batch of facts taken from an actor."""
    command_timeout_s: float = 120.0
    """Longest wait for the trainer's answer to an operator's call that has no deadline of its own."""
    trainer_exit_wait_s: float = 60.0
    """On shutdown: time for the trainer's last checkpoint, before it is killed."""
    store: StoreConfig | None = None
    """Where checkpoints and journal are copied to; a data folder without a journal is filled from there."""
    store_wait_s: float = 10.0
    """At the start and on shutdown: longest wait for the store."""

    def __post_init__(self) -> None:
        named = ("listen", "local_listen", *(("metrics_listen",) if self.metrics_listen is not None else ()))
        for name in named:
            got = getattr(self, name)
            host, _, port = got.rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise ValueError(f"{name}: got {got!r}, wanted HOST:PORT with a port from 0 to 65535")
        if not stays_here(self.local_listen):
            raise ValueError(f"local_listen: got {self.local_listen!r}, wanted a loopback address")
        self.access.check(self.listen)
        for name in (
            *("max_pending_bytes", "max_message_bytes"),
            *("command_timeout_s", "trainer_exit_wait_s", "store_wait_s"),
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted more than 0")

    @property
    def policies(self) -> Path:
        """Folder of policy files."""
        return self.data / "policies"

    @property
    def local_token(self) -> Path:
        """Holds the token of the local door: another one after every start."""
        return self.data / LOCAL_TOKEN

    @property
    def trainer_log(self) -> Path:
        """Where the trainer's output goes."""
        return self.data / "logs" / "trainer.log"

    def create_folders(self) -> None:
        """Creates the layout of the data folder."""
        for name in _FOLDERS:
            (self.data / name).mkdir(parents=True, exist_ok=True)

    def address(self, port: int) -> str:
        """HOST:PORT where processes of this machine reach a server bound to `listen` and `port`."""
        host = self.listen.rpartition(":")[0]
        return f"{_WILDCARDS.get(host, host)}:{port}"
