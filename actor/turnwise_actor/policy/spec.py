"""The shape of a policy's network, which the actor runs in numpy and the learner in torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from turnwise_actor.policy.domain import Domain
from turnwise_actor.policy.encoder import Encoder
from turnwise_actor.policy.sections import ACTIVATIONS

Activation = Literal["relu", "tanh", "silu"]
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class NetworkSpec:
    """Layer i is `activation(norm(W x + b))`, the head `W x + b`.

    `norm` is a LayerNorm (eps 1e-5) over hidden units, there iff `layer_norm`. Inputs are never normed: then
    an input could not be added later.
    """

    inputs: int
    actions: int
    hidden: tuple[int, ...] = (128,)
    activation: Activation = "relu"
    layer_norm: bool = True

    def __post_init__(self) -> None:
        sizes = (self.inputs, self.actions, *self.hidden)
        if not self.hidden or not all(type(size) is int and size >= 1 for size in sizes):
            raise ValueError(
                f"inputs, actions, hidden: got {self.inputs!r}, {self.actions!r}, {self.hidden!r}; "
                "wanted whole numbers from 1, and at least one hidden layer"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation: got {self.activation!r}; wanted one of {', '.join(ACTIVATIONS)}")
        if not isinstance(self.layer_norm, bool):
            raise ValueError(f"layer_norm: got {self.layer_norm!r}; wanted true or false")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> NetworkSpec:
        """The inverse of `to_json`.

        Raises:
            ValueError: not JSON, or not a spec.
        """
        return cls.from_mapping(json.loads(text))

    @classmethod
    def from_mapping(cls, value: Any) -> NetworkSpec:
        """A spec from its JSON object.

        Raises:
            ValueError: not a spec.
        """
        if not isinstance(value, dict) or not isinstance(value.get("hidden", []), list):
            raise ValueError(f"spec: got {value!r:.80}; wanted an object with inputs, actions, hidden, …")
        try:
            return cls(**{**value, "hidden": tuple(value.get("hidden", (128,)))})
        except TypeError as error:
            raise ValueError(f"spec: {error}") from error

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by name; weights are [out, in]."""
        shapes: dict[str, tuple[int, ...]] = {}
        fan_in = self.inputs
        for i, units in enumerate(self.hidden):
            shapes[f"hidden.{i}.weight"] = (units, fan_in)
            shapes[f"hidden.{i}.bias"] = (units,)
            if self.layer_norm:
                shapes[f"norm.{i}.weight"] = (units,)
                shapes[f"norm.{i}.bias"] = (units,)
            fan_in = units
        shapes["head.weight"] = (self.actions, fan_in)
        shapes["head.bias"] = (self.actions,)
        return shapes

    @property
    def parameter_count(self) -> int:
        """Numbers that are learned."""
        total = 0
        for shape in self.parameter_shapes().values():
            total += shape[0] * (shape[1] if len(shape) == 2 else 1)
        return total


def default_spec(domain: Domain) -> NetworkSpec:
    """The network of a domain: one hidden layer of 128 relu units with layer norm.

    `hidden`, `activation` and `layer_norm` under the domain's `learning` change that.
    """
    return NetworkSpec(
        inputs=Encoder(domain).size,
        actions=len(domain.actions),
        hidden=tuple(domain.learning.get("hidden", (128,))),
        activation=domain.learning.get("activation", "relu"),
        layer_norm=domain.learning.get("layer_norm", True),
    )
