"""The Q-network as an RLModule: the torch twin of `turnwise_actor.policy.Network`.

Letters: B batch, D inputs, H units of the last hidden layer, A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn
from torch.nn import functional

from turnwise_actor.policy import NetworkSpec

QF_PREDS = "qf_preds"
ALLOWED = "allowed"
"""Batch column <bool>[B, A]: the actions possible at the turn; without it all are."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "silu": functional.silu,
}


class HiddenLayers(nn.Module):
    """activation(norm(W x + b)), layer by layer; parameter names are those of NetworkSpec."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        sizes = (spec.inputs, *spec.hidden)
        hidden = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        norms = [nn.LayerNorm(size) for size in spec.hidden] if spec.layer_norm else []
        self.hidden, self.norm = nn.ModuleList(hidden), nn.ModuleList(norms)
        self._layers = list(zip_longest(hidden, norms))
        self._activation = _ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        """<float32>[B, D] -> <float32>[B, H]."""
        # Called as functions: in small batches a module's call costs a tenth of what it computes.
        for layer, norm in self._layers:
            x = functional.linear(x, layer.weight, layer.bias)
            if norm is not None:
                x = functional.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.eps)
            x = self._activation(x)
        return x


class TurnwiseDQNModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI, QNetAPI):
    """Q-values of all actions, with a target network; `model_config["network"]` is a NetworkSpec as JSON.

    The head starts at zero: every untried action is worth the value of "untried", so that greedy acting
    tries what nobody has judged yet before it repeats what was judged wrong.
    """

    framework = "torch"

    def setup(self) -> None:
        self.spec = NetworkSpec.from_json(self.model_config["network"])
        self.encoder = HiddenLayers(self.spec)
        self.head = nn.Linear((self.spec.inputs, *self.spec.hidden)[-1], self.spec.actions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    # TargetNetworkAPI

    def make_target_networks(self) -> None:
        self._target_encoder = make_target_network(self.encoder)
        self._target_head = make_target_network(self.head)

    def get_non_inference_attributes(self) -> list[str]:
        return ["_target_encoder", "_target_head"]

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.encoder, self._target_encoder), (self.head, self._target_head)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Q-values of the target network for `batch["obs"]`, <float32>[B, A]."""
        return {QF_PREDS: _q_values(self._target_encoder, self._target_head, batch[Columns.OBS])}

    # QNetAPI

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Q-values for `batch["obs"]`, <float32>[B, A]."""
        return {QF_PREDS: _q_values(self.encoder, self.head, batch[Columns.OBS])}

    # Acting: the actors do it on numpy; these serve whoever opens a checkpoint with RLlib.

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            q = self.compute_q_values(batch)[QF_PREDS]
        if ALLOWED in batch:
            q = q.masked_fill(~batch[ALLOWED], -torch.inf)
        return {Columns.ACTIONS: q.argmax(dim=-1), QF_PREDS: q}

    _forward_exploration = _forward_inference

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return self.compute_q_values(batch)

    # Parameters under the names of NetworkSpec.parameter_shapes().

    def policy_parameters(self) -> dict[str, np.ndarray]:
        """The online network as an actor wants it: name -> <float32> array, which the next update changes."""
        named = {**dict(self.encoder.named_parameters()), **_prefixed("head", self.head)}
        return {name: p.detach().cpu().numpy() for name, p in named.items()}


def _q_values(encoder: HiddenLayers, head: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(encoder.forward(x), head.weight, head.bias)


def _prefixed(prefix: str, module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}
