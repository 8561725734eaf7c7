"""A policy and its file: safetensors, with everything else as JSON under the metadata key "turnwise"."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from turnwise_actor.policy.domain import Domain
from turnwise_actor.policy.network import Network, check_parameters
from turnwise_actor.policy.spec import NetworkSpec, default_spec

Float32 = npt.NDArray[np.float32]

FORMAT = 1
_KEY = "turnwise"


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
class Exploration:
    """How much each mode explores; chosen by the learner, travels with the weights."""

    teach_epsilon: float = 0.0
    serve_epsilon: float = 0.02

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}: got {value!r}; wanted a number from 0 to 1")

    def epsilon(self, mode_name: str) -> float:
        """Share of uniform choices in a mode: `teach`, `serve`, `shadow` or `evaluate`, in any case."""
        match mode_name.lower():
            case "teach":
                return self.teach_epsilon
            case "serve":
                return self.serve_epsilon
            case "shadow" | "evaluate":
                return 0.0
        raise ValueError(f"mode: got {mode_name!r}; wanted teach, serve, shadow or evaluate")


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
        check_parameters(self.spec, self.parameters)
        tensors = {n: np.ascontiguousarray(p, dtype="<f4") for n, p in self.parameters.items()}
        about = self._about()
        about["digest"] = _digest(about, tensors)
        return bytes(safetensors.numpy.save(tensors, metadata={_KEY: _canonical(about)}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Policy:
        """The policy of a file.

        Raises:
            PolicyFileError: the bytes are cut short, altered, or of another format; says which.
        """
        about = _read_about(data)
        tensors = _read_tensors(data)
        digest = about.pop("digest", None)
        if digest != _digest(about, tensors):
            raise PolicyFileError("policy file: the digest does not match: it was altered or damaged")
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
            check_parameters(policy.spec, policy.parameters)
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyFileError(f"policy file: {error}") from error
        return policy

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": str(self.version),
            "learned_through": self.learned_through,
            "fingerprint": self.fingerprint,
            "spec": json.loads(self.spec.to_json()),
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
        state.update(tensors[name].tobytes())
    return state.hexdigest()


def _read_about(data: bytes) -> dict[str, Any]:
    """The "turnwise" metadata. The library hands out tensors only, so the header is read here."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise PolicyFileError(f"policy file: got {len(data)} bytes, fewer than its header says: cut short?")
    try:
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise PolicyFileError(
            f"policy file: no readable {_KEY!r} metadata in its header: {error!r}"
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = about.get("format") if isinstance(about, dict) else about
        raise PolicyFileError(f"policy file: got format {got!r:.80}; wanted {FORMAT}")
    return about


def _read_tensors(data: bytes) -> dict[str, Float32]:
    try:
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise PolicyFileError(f"policy file: {error}") from error
    return {name: _read_tensor(name, tensor) for name, tensor in tensors.items()}


def _read_tensor(name: str, tensor: dict[str, Any]) -> Float32:
    if tensor["dtype"] != "F32":
        raise PolicyFileError(f"policy file: {name}: got {tensor['dtype']}; wanted F32")
    return np.frombuffer(tensor["data"], "<f4").reshape(tensor["shape"]).astype(np.float32)
