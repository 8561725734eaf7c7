"""The losses, on RLlib's DQN learner.

For a batch of turns (B rows, A actions; <bool> masks; columns named in `Columns`):

    boot_i     = discount_i * Q_target(s'_i, argmax_{a allowed in s'_i} Q(s'_i, a))        arXiv:1509.06461
    e_i        = Q(s_i, a_i) - R_i - boot_i                    the taken action's error, 0 without a return
    future_i   = rest_i + boot_i where the turn itself was judged, else 0
    u_i(a)     = Q(s_i, a) - untried - future_i                an untried action's: allowed, uncorrected
    L_td       = mean_i  w_i * loss(e_i)
    L_anchor   = mean_i  anchor_weight * mean_a u_i(a)^2
    L_contrast = mean_i  contrast_weight * told_i * mean_a (e_i - u_i(a))^2
    L_x        = mean_i  sum_{x corrected} (Q(s_i, x) - future_i - c_x)^2
    L_margin   = mean_i  max_a [Q(s_i, a) + m 1{a not corrected}] - max_{x corrected} Q(s_i, x)
    L          = L_td + L_anchor + L_contrast + correction_weight * (L_x + L_margin)

R_i is the n-step return, rest_i what it holds beyond the turn's own reward, told_i whether it holds anything
that a person said. L_margin is the large-margin loss of DQfD (arXiv:1704.03732, eq. 3), against a set of
right actions.

The anchor is what makes greedy acting explore: an untried action stays at the value of "untried", a wrong
one falls below it. Without it, generalisation drags untried actions under the least bad tried one. A judged
turn says what its action was worth, so an untried action is given the same future and a neutral reward. A
turn that nobody judged says it through its future only, so the untried is given a neutral one: given the
same, it would tie with what was tried.

The contrast holds the taken action apart from the untried ones by what was said, whatever follows: boot_i
differs from turn to turn of one situation, and a right answer that was met once, before a poor future, would
stay below untried ones that were given a good one. It cancels in e_i - u_i.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.utils import update_target_network
from ray.rllib.utils.metrics import (
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    NUM_TARGET_UPDATES,
    TD_ERROR_KEY,
)
from torch import Tensor
from torch.nn.functional import huber_loss

from turnwise_learner.trainer.rl_module import ALLOWED, QF_PREDS

UPDATES = "turnwise_updates"
"""State key: gradient updates so far, and at which of them the target network was last moved."""

NEXT_ALLOWED = "next_allowed"
DISCOUNTS = "discounts"
"""<float32>[B]: gamma ** steps, 0 where nothing follows."""
HAS_RETURN = "has_return"
"""<float32>[B]: 1 where the action taken has a return to learn."""
JUDGED = "judged"
"""<float32>[B]: 1 where the turn itself was rated or corrected."""
TOLD = "told"
"""<float32>[B]: 1 where the return holds something that a person said."""
REST = "rest"
"""<float32>[B]: the part of the return beyond the turn's own reward."""
CORRECTED = "corrected"
"""<bool>[B, A]: live corrections for the state of the row."""
CORRECTION_OPEN = "correction_open"
"""<bool>[B, A]: of those, the ones not yet rated themselves, which are taught `correction_value`."""
WEIGHTS = "weights"


class TurnwiseTorchLearner(DQNTorchLearner):
    """DQNTorchLearner with masks, anchor and contrast, corrections, and many updates a call.

    The target network follows a clock of gradient updates, not of environment steps: replaying while
    nobody talks moves it too. The clock is part of the checkpoint.
    """

    def build(self) -> None:
        super().build()
        self.updates = 0
        self.skipped_batches = 0
        self._target_updated_at = 0
        self._last_batch: dict[str, Tensor] = {}

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Fused Adam; the stock one ignores `adam_epsilon`."""
        parameters = [p for p in self.get_parameters(self._module[module_id]) if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, eps=config.adam_epsilon, fused=True)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    @property
    def last_losses(self) -> dict[str, float]:
        """Terms of the loss on the newest batch, as the network is now; empty before the first update."""
        if not self._last_batch:
            return {}
        with torch.no_grad():
            q = self.module[DEFAULT_MODULE_ID].unwrapped().compute_q_values(self._last_batch)[QF_PREDS]
            _, terms = self._losses(self._last_batch, q)
        return {name: float(term.mean()) for name, term in terms.items()}

    def update_many(
        self, batches: Iterable[tuple[np.ndarray, dict[str, np.ndarray]]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One gradient step a batch; yields (rows, |TD error| <float32>[B]) after each.

        Non-finite batches change nothing and are counted in `skipped_batches`; their errors come back as NaN.
        Skips RLlib's per-update metrics and Ray counters, which cost more than the update itself.
        """
        steps = 0
        module = self.module[DEFAULT_MODULE_ID]
        if not module.training:
            module.train()
        for rows, columns in batches:
            batch = {name: torch.from_numpy(column) for name, column in columns.items()}
            # Moments of weights whose gradients have become 0 decay to numbers too small to be normalised,
            # with which a CPU is very slow: after some thousand updates Adam took three times as long.
            torch.set_flush_denormal(True)
            try:
                errors = self._gradient_step(batch)
            finally:
                torch.set_flush_denormal(False)
            yield rows, errors
            steps += len(rows)
        if steps:
            self.metrics.log_value(
                (DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED_LIFETIME), steps, reduce="lifetime_sum"
            )

    def log_losses(self) -> None:
        """Tells RLlib's metrics the terms of the loss, for those who read its results."""
        self.metrics.log_dict(self.last_losses, key=DEFAULT_MODULE_ID, window=1)

    def _gradient_step(self, batch: dict[str, Tensor]) -> np.ndarray:
        if self._device.type != "cpu":
            batch = {name: column.to(self._device, non_blocking=True) for name, column in batch.items()}
        q = self.module[DEFAULT_MODULE_ID].unwrapped().compute_q_values(batch)[QF_PREDS]
        slopes, error = self._slopes(batch, q.detach())
        (optimizer,) = self._named_optimizers.values()
        parameters = optimizer.param_groups[0]["params"]
        for parameter in parameters:
            parameter.grad = None
        q.backward(slopes)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        _average(gradients)
        if not self._clip(gradients):
            self.skipped_batches += 1
            return np.full(len(error), np.nan, np.float32)
        optimizer.step()
        self._weights_seq_no += 1
        self.updates += 1
        self._move_target()
        self._last_batch = batch
        return error.cpu().numpy()

    def _clip(self, gradients: list[Tensor]) -> bool:
        """Scales gradients down to a global norm of `grad_clip`; False: they are not finite.

        As torch.nn.utils.clip_grad_norm_, with one look at the norm for both.
        """
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        limit = self.config.grad_clip or math.inf
        if norm > limit:
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        return math.isfinite(norm)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Tensor], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        loss, terms = self._losses(batch, fwd_out[QF_PREDS])
        self.metrics.log_value((module_id, TD_ERROR_KEY), terms["td_error_mean"], reduce="item_series")
        means = {name: term.mean() for name, term in terms.items()}
        self.metrics.log_dict(means, key=module_id, window=1)
        return loss

    def _losses(self, batch: dict[str, Tensor], q: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss as the formulas have it, and its terms row by row, whose means are reported."""
        config, corrected = self.config, batch[CORRECTED]
        boot = self._bootstrap(batch)
        td, free, untried, future = self._errors(batch, q, boot)
        if config.td_error_loss_fn == "huber":
            l_td = batch[WEIGHTS] * huber_loss(td, torch.zeros_like(td), reduction="none")
        else:
            l_td = batch[WEIGHTS] * td.square()
        share = 1 / free.sum(1).clamp(min=1)
        apart = (td.unsqueeze(1) - untried) * free
        l_anchor = config.anchor_weight * share * (untried * free).square().sum(1)
        l_contrast = config.contrast_weight * share * batch[TOLD] * apart.square().sum(1)
        l_x = (self._correction_gaps(q, future) * batch[CORRECTION_OPEN]).square().sum(1)
        able = batch[ALLOWED] | corrected
        rival = (q + config.margin * ~corrected).masked_fill(~able, -torch.inf).amax(1)
        best = q.masked_fill(~corrected, -torch.inf).amax(1)
        margin = torch.where(corrected.any(1), rival - best, 0.0)
        terms = {
            "td_loss": l_td,
            "anchor_loss": l_anchor,
            "contrast_loss": l_contrast,
            "correction_loss": l_x,
            "margin_loss": margin,
            "total_loss": l_td + l_anchor + l_contrast + config.correction_weight * (l_x + margin),
            "td_error_mean": td.abs(),
        }
        return terms["total_loss"].mean(), {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def _slopes(self, batch: dict[str, Tensor], q: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative of `_losses` with respect to `q`, <float32>[B, A], and |error| <float32>[B].

        Written out because autograd's many small operations on [B, A], and the values of the terms, would
        cost as much as the network itself at B = 32.
        """
        config, corrected = self.config, batch[CORRECTED]
        taken = batch[Columns.ACTIONS].unsqueeze(1)
        td, free, untried, future = self._errors(batch, q, self._bootstrap(batch))
        error = td.abs()
        slope_td = batch[WEIGHTS] * (td.clamp(-1, 1) if config.td_error_loss_fn == "huber" else 2 * td)
        share = 2 / free.sum(1).clamp_(min=1)
        free = free.mul_(share.unsqueeze(1))
        slopes = (untried * free).mul_(config.anchor_weight)
        if config.contrast_weight:
            apart = (td.unsqueeze(1) - untried).mul_(free)
            apart *= (config.contrast_weight * batch[TOLD]).unsqueeze(1)
            slopes -= apart
            slope_td = slope_td + apart.sum(1)
        slopes.scatter_add_(1, taken, slope_td.unsqueeze(1))
        if corrected.any():
            gap_x = self._correction_gaps(q, future) * batch[CORRECTION_OPEN]
            raised = (q + config.margin * ~corrected).masked_fill_(~(batch[ALLOWED] | corrected), -torch.inf)
            right = q.masked_fill(~corrected, -torch.inf)
            rival, best = raised.amax(1, keepdim=True), right.amax(1, keepdim=True)
            has_x = corrected.any(1, keepdim=True)
            slope_margin = (_shares(raised == rival) - _shares(right == best)) * has_x
            slopes += config.correction_weight * (2 * gap_x + slope_margin)
            margin = torch.where(has_x, rival - best, 0.0).squeeze(1)
            error = torch.maximum(error, torch.maximum(margin, gap_x.abs().amax(1)))
        return slopes.div_(len(q)), error

    def _errors(
        self, batch: dict[str, Tensor], q: Tensor, boot: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """e_i <float32>[B]; which actions u_i is of, 1 or 0, and u_i, both <float32>[B, A]; future_i."""
        taken = batch[Columns.ACTIONS].unsqueeze(1)
        td = (q.gather(1, taken).squeeze(1) - (batch[Columns.REWARDS] + boot)) * batch[HAS_RETURN]
        free = (batch[ALLOWED] & ~batch[CORRECTED]).scatter_(1, taken, False).float()
        future = batch[JUDGED] * (batch[REST] + boot)
        return td, free, q - (future + self.config.untried_value).unsqueeze(1), future

    def _correction_gaps(self, q: Tensor, future: Tensor) -> Tensor:
        """How far every action lies above what a correction stands for, <float32>[B, A]."""
        return q - (future + self.config.correction_value).unsqueeze(1)

    def _bootstrap(self, batch: dict[str, Tensor]) -> Tensor:
        """Discounted double-Q value of the next state, <float32>[B]; no gradient."""
        if Columns.NEXT_OBS not in batch:
            return torch.zeros_like(batch[Columns.REWARDS])
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        following = {Columns.OBS: batch[Columns.NEXT_OBS]}
        with torch.no_grad():
            q_target = module.forward_target(following)[QF_PREDS]
            q_choice = module.compute_q_values(following)[QF_PREDS] if self.config.double_q else q_target
            # An all-masked row would choose among -inf: action 0, harmless where the discount is 0.
            best = q_choice.masked_fill(~batch[NEXT_ALLOWED], -torch.inf).argmax(1, keepdim=True)
            return batch[DISCOUNTS] * q_target.gather(1, best).squeeze(1)

    def _move_target(self) -> None:
        if self.updates - self._target_updated_at < self.config.target_network_update_freq:
            return
        for main, target in self.module[DEFAULT_MODULE_ID].unwrapped().get_target_network_pairs():
            update_target_network(main_net=main, target_net=target, tau=self.config.tau)
        self._target_updated_at = self.updates
        self.metrics.log_value((DEFAULT_MODULE_ID, NUM_TARGET_UPDATES), 1, reduce="lifetime_sum")

    # Checkpointable

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(UPDATES, components, not_components):
            state[UPDATES] = {
                "updates": self.updates,
                "target_updated_at": self._target_updated_at,
                "skipped_batches": self.skipped_batches,
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if UPDATES in state:
            self.updates = state[UPDATES]["updates"]
            self._target_updated_at = state[UPDATES]["target_updated_at"]
            self.skipped_batches = state[UPDATES]["skipped_batches"]

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Keeps RLlib's schedules; the target network follows its own clock."""
        Learner.after_gradient_based_update(self, timesteps=timesteps)


def _average(gradients: list[Tensor]) -> None:
    """Their mean over remote learners, each of which has its part of the batch; a local one is alone.

    By hand, since `compute_q_values` passes the wrapper by that would do it.
    """
    if not torch.distributed.is_initialized():
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def _shares(largest: Tensor) -> Tensor:
    """The derivative of a row's maximum, <float32>[B, A]: those that share it share alike."""
    return largest / largest.sum(1, keepdim=True)
