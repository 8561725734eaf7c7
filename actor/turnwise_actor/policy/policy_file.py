"""A policy and its file: safetensors, with everything else as JSON under the metadata key "turnwise"."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
import safetensors

from turnwise_actor.policy.domain import Domain
from turnwise_actor.policy.network import Network, check_parameters
from turnwise_actor.policy.spec import NetworkSpec, default_spec

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

ExplorationKind: TypeAlias = Literal["greedy", "softmax"]
EXPLORATION_KINDS: tuple[ExplorationKind, ...] = get_args(ExplorationKind)

FORMAT = 1
_KEY = "turnwise"
_BIG = 1 << 20
"""Numbers below which a second thread costs more than it saves."""
_NO_DIGEST = 32 * "0"


class PolicyFileError(ValueError):
    """Bytes that are not a policy file, or a damaged one."""


@dataclass(frozen=True, order=True)
class PolicyVersion:
    """Ordered: a later generation beats any number of an earlier one. As text: `3.17`."""

    generation: int
    number: int

    def __post_init__(self) -> None:
        if not (0 <= self.generation < 1 << 32 and 0 <= self.number < 1 << 64):
            raise ValueError(f"version: got {self.generation}.{self.number}; wanted numbers from 0")

    def __str__(self) -> str:
        return f"{self.generation}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> PolicyVersion:
        """The inverse of `str`.

        Raises:
            ValueError: not two whole numbers with a dot between.
        """
        generation, dot, number = text.partition(".")
        if not dot or not all(part.isascii() and part.isdigit() for part in (generation, number)):
            raise ValueError(f"version: got {text!r}; wanted generation.number, such as 3.17")
        return cls(int(generation), int(number))


@dataclass(frozen=True)
class ModeExploration:
    """How a mode acts: pi = (1 - epsilon) directed + epsilon uniform(allowed). The default never explores."""

    epsilon: float = 0.0
    """Share of uniform choices, [0, 1]."""
    kind: ExplorationKind = "greedy"
    """`directed`: the highest value, ties split evenly; or softmax of the values over `temperature`."""
    temperature: float = 0.1
    """Of softmax, above 0, in units of value (rewards are scaled to [-1, 1]): higher is more random."""

    def __post_init__(self) -> None:
        if not _is_number(self.epsilon) or not 0.0 <= self.epsilon <= 1.0:
            raise ValueError(f"epsilon: got {self.epsilon!r}; wanted a number from 0 to 1")
        if self.kind not in EXPLORATION_KINDS:
            raise ValueError(f"kind: got {self.kind!r}; wanted {' or '.join(EXPLORATION_KINDS)}")
        if not _is_number(self.temperature) or not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature: got {self.temperature!r}; wanted a finite number above 0")


@dataclass(frozen=True)
class Exploration:
    """How each mode explores; chosen by the learner, travels with the weights.

    Flat, and whole by default: files and checkpoints written before a field was there are read as they are.
    """

    teach_epsilon: float = 0.0
    serve_epsilon: float = 0.02
    teach_kind: ExplorationKind = "greedy"
    serve_kind: ExplorationKind = "greedy"
    teach_temperature: float = ModeExploration.temperature
    serve_temperature: float = ModeExploration.temperature

    def __post_init__(self) -> None:
        for mode in ("teach", "serve"):
            try:
                self.of(mode)
            except ValueError as error:
                raise ValueError(f"{mode}_{error}") from error

    @lru_cache(maxsize=256)  # noqa: B019 - small, and asked for at every turn
    def of(self, mode_name: str) -> ModeExploration:
        """What `teach`, `serve`, `shadow` or `evaluate`, in any case, does; the latter two are greedy."""
        match mode_name.lower():
            case "teach":
                return ModeExploration(self.teach_epsilon, self.teach_kind, self.teach_temperature)
            case "serve":
                return ModeExploration(self.serve_epsilon, self.serve_kind, self.serve_temperature)
            case "shadow" | "evaluate":
                return ModeExploration()
        raise ValueError(f"mode: got {mode_name!r}; wanted teach, serve, shadow or evaluate")

    def changed(
        self,
        mode_name: str,
        epsilon: float | None = None,
        kind: str | None = None,
        temperature: float | None = None,
    ) -> Exploration:
        """The same with another `teach` or `serve`; None leaves a part of it as it is.

        Raises:
            ValueError: a value is out of its range, or the mode is one that never explores.
        """
        mode = mode_name.lower()
        if mode not in ("teach", "serve"):
            raise ValueError(f"mode: got {mode_name!r}; wanted teach or serve; the other modes never explore")
        given = {"epsilon": epsilon, "kind": kind, "temperature": temperature}
        changes = {f"{mode}_{name}": value for name, value in given.items() if value is not None}
        return replace(self, **cast("dict[str, Any]", changes))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, eq=False)
class Policy:
    """One version of a policy: what an actor answers from."""

    version: PolicyVersion
    learned_through: int
    """Journal cursor whose lessons are in it."""
    fingerprint: str
    """Of the domain it was learned for."""
    spec: NetworkSpec
    parameters: dict[str, Float32]
    exploration: Exploration = field(default_factory=Exploration)
    updates: int = 0

    def __post_init__(self) -> None:
        for name, value in (("learned_through", self.learned_through), ("updates", self.updates)):
            if type(value) is not int or value < 0:
                raise ValueError(f"{name}: got {value!r}; wanted a whole number from 0, a plain int")

    @cached_property
    def network(self) -> Network:
        """The forward pass, built once.

        Raises:
            ValueError: the parameters do not fit the spec.
        """
        return Network(self.spec, self.parameters)

    def to_bytes(self) -> bytes:
        """The policy's file; the same policy gives the same bytes.

        Raises:
            ValueError: the parameters do not fit the spec.
        """
        file = io.BytesIO()
        self.write(file)
        return file.getvalue()

    def write(self, file: BinaryIO) -> None:
        """Writes the policy's file, the parameters from where they lie: the library would copy them twice.

        Raises:
            OSError: it cannot be written.
            ValueError: the parameters do not fit the spec.
        """
        check_parameters(self.spec, self.parameters)
        tensors = {n: np.ascontiguousarray(p, dtype="<f4") for n, p in sorted(self.parameters.items())}
        content, about = [tensor.reshape(-1).data for tensor in tensors.values()], self._about()
        if sum(map(len, content)) < _BIG:
            file.writelines((_head(about, tensors, _digest(about, tensors)), *content))
            return
        # Making the digest takes as long as writing, so they go side by side, and the head is written last.
        file.seek(len(_head(about, tensors, _NO_DIGEST)))
        with ThreadPoolExecutor(1) as beside:
            written = beside.submit(file.writelines, content)
            head = _head(about, tensors, _digest(about, tensors))
            written.result()
        file.seek(0)
        file.write(head)

    @classmethod
    def from_bytes(cls, data: bytes) -> Policy:
        """The policy of a file.

        Raises:
            PolicyFileError: the bytes are cut short, altered, or of another format; says which.
        """
        about, _, _ = _read_head(data)
        tensors = _read_tensors(data)
        digest = about.pop("digest", None)
        if digest != _digest(about, tensors):
            raise PolicyFileError("policy file: the digest does not match: it was altered or damaged")
        return cls._of(about, tensors)

    @classmethod
    def mapped(cls, file: int) -> Policy:
        """The policy of an open file that this machine wrote: read in place, shared with all who map it.

        Its digest is not looked at, which would mean to read all of it. The file may be closed afterwards.

        Raises:
            OSError: it cannot be read.
            PolicyFileError: it is cut short, or of another format; says which.
        """
        try:
            data = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise PolicyFileError(f"policy file: {error}") from error
        about, tensors, start = _read_head(data)
        return cls._of(about, _map_tensors(data, tensors, start))

    @classmethod
    def _of(cls, about: dict[str, Any], tensors: dict[str, Float32]) -> Policy:
        try:
            policy = cls(
                version=PolicyVersion.parse(str(about["version"])),
                learned_through=about["learned_through"],
                fingerprint=str(about["fingerprint"]),
                spec=NetworkSpec.from_mapping(about["spec"]),
                parameters=tensors,
                exploration=Exploration(**about["exploration"]),
                updates=about["updates"],
            )
            _ = policy.network  # checks the parameters; built here, where that is off the event loop
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyFileError(f"policy file: {error}") from error
        return policy

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": str(self.version),
            "learned_through": self.learned_through,
            "fingerprint": self.fingerprint,
            "spec": asdict(self.spec),
            "exploration": asdict(self.exploration),
            "updates": self.updates,
        }


def initial_policy(domain: Domain, spec: NetworkSpec | None = None, *, seed: int = 0) -> Policy:
    """A policy that has learned nothing: version 0.0, all Q-values 0, so that every action is as good.

    Hidden layers are drawn as torch.nn.Linear does: uniform within 1/sqrt(inputs of the layer).
    """
    spec = spec or default_spec(domain)
    rng = np.random.default_rng(seed)
    parameters: dict[str, Float32] = {}
    fan_in = 0
    for name, shape in spec.parameter_shapes().items():
        kind, part = name.split(".")[0], name.rsplit(".", 1)[1]
        if kind == "hidden":
            fan_in = shape[1] if part == "weight" else fan_in
            bound = 1.0 / np.sqrt(fan_in)
            parameters[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        else:
            ones = kind == "norm" and part == "weight"
            parameters[name] = np.ones(shape, np.float32) if ones else np.zeros(shape, np.float32)
    return Policy(PolicyVersion(0, 0), 0, domain.fingerprint, spec, parameters)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(about: dict[str, Any], tensors: dict[str, Float32]) -> str:
    """32 hex digits over the metadata and every parameter's name, shape and bytes."""
    state = hashlib.blake2b(_canonical(about).encode(), digest_size=16)
    for name in sorted(tensors):
        state.update(_canonical([name, list(tensors[name].shape)]).encode("utf-8", "surrogatepass"))
        state.update(tensors[name].reshape(-1).data)
    return state.hexdigest()


def _head(about: dict[str, Any], tensors: dict[str, Float32], digest: str) -> bytes:
    """What comes before the parameters; as long with any digest."""
    header: dict[str, Any] = {"__metadata__": {_KEY: _canonical({**about, "digest": digest})}}
    at = 0
    for name, tensor in tensors.items():
        offsets = [at, at := at + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _read_head(data: bytes | mmap.mmap) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The "turnwise" metadata, what is said of each parameter, and where the first one begins.

    The library hands out tensors only, so the header is read here.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise PolicyFileError(f"policy file: got {len(data)} bytes, fewer than its header says: cut short?")
    try:
        header = json.loads(data[8 : 8 + length])
        about = json.loads(header.pop("__metadata__")[_KEY])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise PolicyFileError(
            f"policy file: no readable {_KEY!r} metadata in its header: {error!r}"
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = about.get("format") if isinstance(about, dict) else about
        raise PolicyFileError(f"policy file: got format {got!r:.80}; wanted {FORMAT}")
    return about, header, 8 + length


def _read_tensors(data: bytes) -> dict[str, Float32]:
    try:
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise PolicyFileError(f"policy file: {error}") from error
    return {name: _read_tensor(name, tensor) for name, tensor in tensors.items()}


def _read_tensor(name: str, tensor: dict[str, Any]) -> Float32:
    if tensor["dtype"] != "F32":
        raise PolicyFileError(f"policy file: {name}: got {tensor['dtype']}; wanted F32")
    return np.frombuffer(tensor["data"], "<f4").reshape(tensor["shape"]).astype(np.float32, copy=False)


def _map_tensors(data: mmap.mmap, described: dict[str, Any], start: int) -> dict[str, Float32]:
    """Views of a file's parameters; the library only makes copies."""
    tensors = {}
    try:
        for name, tensor in described.items():
            if tensor["dtype"] != "F32":
                raise PolicyFileError(f"policy file: {name}: got {tensor['dtype']}; wanted F32")
            begin, end = tensor["data_offsets"]
            flat = np.frombuffer(data, "<f4", (end - begin) // 4, start + begin)
            tensors[name] = flat.reshape(tensor["shape"])
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise PolicyFileError(f"policy file: no readable parameters: {error!r}") from error
    return tensors


def policy_files(folder: Path) -> dict[PolicyVersion, Path]:
    """The policy files of a folder, oldest first; others, and half-written ones, are passed over."""
    found = {}
    for file in folder.glob("*.safetensors"):
        try:
            found[PolicyVersion.parse(file.stem)] = file
        except ValueError:
            if not file.name.startswith("."):
                logger.warning("%s is passed over: not named <generation>.<number>.safetensors", file)
    return dict(sorted(found.items()))
