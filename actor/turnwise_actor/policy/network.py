"""The forward pass in numpy. D: inputs, H: hidden units, A: actions, B: batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from turnwise_actor.compiled import FORWARD
from turnwise_actor.policy.spec import LAYER_NORM_EPS, NetworkSpec

Float32 = npt.NDArray[np.float32]


def check_parameters(spec: NetworkSpec, parameters: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Checks that names, shapes and types are those of the spec and every number is finite.

    Raises:
        ValueError: naming the parameter.
    """
    shapes = spec.parameter_shapes()
    missing, unknown = shapes.keys() - parameters.keys(), parameters.keys() - shapes.keys()
    if missing or unknown:
        raise ValueError(f"parameters: missing {sorted(missing)}, unknown {sorted(unknown)}")
    for name, shape in shapes.items():
        value = parameters[name]
        if value.shape != shape or value.dtype != np.float32:
            raise ValueError(f"{name}: got {value.dtype}{list(value.shape)}; wanted float32{list(shape)}")
        if not _is_finite(value.reshape(-1)):
            raise ValueError(f"{name}: got {np.count_nonzero(~np.isfinite(value))} NaN or infinite numbers")


def _is_finite(flat: npt.NDArray[np.generic]) -> bool:
    """Whether every number is; in one pass and without a copy, which matters at tens of megabytes."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.dot(flat, flat)
    return bool(np.isfinite(squares) or np.isfinite(flat).all())  # large numbers' squares are infinite, too


class Network:
    """Q-values of one set of parameters. Immutable; safe to share between threads.

    Args:
        compiled: Whether the compiled forward pass may be used, where there is one.
    """

    forward: Any = None
    """The compiled forward pass, if it is used: not for layers that are too large to be held twice."""

    def __init__(
        self, spec: NetworkSpec, parameters: Mapping[str, Float32], *, compiled: bool = True
    ) -> None:
        check_parameters(spec, parameters)
        self.spec = spec
        if compiled and FORWARD is not None and all(p.size < _SMALL for p in parameters.values()):
            names = [*((f"hidden.{i}", f"norm.{i}") for i in range(len(spec.hidden))), ("head", "")]
            parts = [
                (
                    parameters[f"{linear}.weight"],
                    parameters[f"{linear}.bias"],
                    parameters.get(f"{norm}.weight"),
                    parameters.get(f"{norm}.bias"),
                )
                for linear, norm in names
            ]
            self.forward = FORWARD.Forward(parts, spec.activation, LAYER_NORM_EPS)
            return
        self._layers = [_layer(spec, i, parameters) for i in range(len(spec.hidden))]
        self._activate = _ACTIVATIONS[spec.activation]
        self._head_weight = np.ascontiguousarray(parameters["head.weight"])
        self._head_bias = np.ascontiguousarray(parameters["head.bias"])

    def q_values(self, obs: Float32) -> Float32:
        """Q-values of one observation or of a batch; the same to the last bit in any batch.

        Args:
            obs: <float32>[D] or <float32>[B, D].

        Returns:
            <float32>[A] or <float32>[B, A].
        """
        if obs.ndim not in (1, 2) or obs.shape[-1] != self.spec.inputs:
            raise ValueError(
                f"obs: got shape {obs.shape}; wanted [{self.spec.inputs}] or [B, {self.spec.inputs}]"
            )
        if obs.ndim == 1:
            one: Float32 = self.q_values(obs[None])[0]
            return one
        if self.forward is not None:
            compiled: Float32 = self.forward.q_values(obs)
            return compiled
        # A matrix-vector product a row: BLAS adds up in another order for another number of rows, and an
        # answer must not depend on who else asked at the same moment. A few rows at once are hardly faster.
        x: Float32 = np.ascontiguousarray(obs)[:, None, :]
        for layer in self._layers:
            x = self._activate(_forward(layer, x))
        x = x @ self._head_weight.T
        x += self._head_bias
        return x[:, 0]


_SMALL = 1 << 20
"""Weights of a layer below which a copy of them is cheaper than what it saves at every turn."""


@dataclass(frozen=True)
class _Layer:
    weight: Float32
    bias: Float32
    scale: Float32 | None
    shift: Float32 | None
    centred: bool
    """The mean over the units is taken out of weight and bias already."""


def _layer(spec: NetworkSpec, i: int, parameters: Mapping[str, Float32]) -> _Layer:
    weight, bias = (np.ascontiguousarray(parameters[f"hidden.{i}.{part}"]) for part in ("weight", "bias"))
    if not spec.layer_norm:
        return _Layer(weight, bias, None, None, centred=False)
    scale, shift = (np.ascontiguousarray(parameters[f"norm.{i}.{part}"]) for part in ("weight", "bias"))
    # A layer norm begins by subtracting the mean over the units, which is linear in W and b: done here once,
    # unless that would double memory that may be shared with other processes.
    if centred := weight.size < _SMALL:
        weight = weight - weight.mean(axis=0, dtype=np.float64).astype(np.float32)
        bias = bias - bias.mean(dtype=np.float64).astype(np.float32)
    return _Layer(weight, bias, scale, shift, centred)


def _forward(layer: _Layer, x: Float32) -> Float32:
    y: Float32 = x @ layer.weight.T
    y += layer.bias
    if layer.scale is not None and layer.shift is not None:
        if not layer.centred:
            y -= y.mean(axis=-1, keepdims=True)
        squares = np.einsum("...h,...h->...", y, y)[..., None]
        squares /= np.float32(y.shape[-1])
        squares += np.float32(LAYER_NORM_EPS)
        y /= np.sqrt(squares, out=squares)
        y *= layer.scale
        y += layer.shift
    return y


def _relu(y: Float32) -> Float32:
    return np.maximum(y, np.float32(0.0), out=y)


def _tanh(y: Float32) -> Float32:
    return np.tanh(y, out=y)


def _silu(y: Float32) -> Float32:
    # x * sigmoid(x), by tanh because exp overflows.
    half = y * np.float32(0.5)
    result: Float32 = half * (np.float32(1.0) + np.tanh(half))
    return result


_ACTIVATIONS: dict[str, Callable[[Float32], Float32]] = {"relu": _relu, "tanh": _tanh, "silu": _silu}
