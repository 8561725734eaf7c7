"""The reference for `updates.py`: the same learning in plain torch, without RLlib, journal or checkpoints.

Fused Adam, one thread; loss terms, strata of a batch and priorities as docs/semantics.md and
`turnwise_learner.trainer.torch_learner` have them, over a flat replay that is filled once. Whoever makes
this file faster tightens the goal. Letters: N rows, B batch, D inputs, A actions.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, relu

WIDTH = 32


class Strata:
    """Priorities <float64>[2, N], all rows and protected ones, under one level of block sums."""

    def __init__(self, capacity: int) -> None:
        self.parts = -(-capacity // WIDTH)
        self.leaves = np.zeros((2, self.parts * WIDTH))
        self.blocks = self.leaves.reshape(-1, WIDTH)
        self.sums = np.zeros(2 * self.parts)

    def set(self, rows: np.ndarray, priorities: np.ndarray) -> None:
        """Sets priorities <float64>[2, B] of rows <int64>[B]."""
        self.leaves[:, rows] = priorities
        blocks = rows // WIDTH
        blocks = np.concatenate((blocks, blocks + self.parts))
        self.sums[blocks] = self.blocks.take(blocks, 0).sum(1)

    def draw(self, counts: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Rows <int64>[sum of counts], one in each of `count` equal parts of a stratum's cumulative sum."""
        ends = self.sums.cumsum()
        first = ends[self.parts - 1]
        marks = np.concatenate([np.arange(count) for count in counts]) + rng.random(sum(counts))
        marks[: counts[0]] *= first / counts[0]
        marks[counts[0] :] = first + marks[counts[0] :] * ((ends[-1] - first) / counts[1])
        block = np.minimum(ends.searchsorted(marks, "right"), len(ends) - 1)
        inside = self.blocks.take(block, 0).cumsum(1)
        marks -= ends[block] - self.sums[block]
        np.minimum(marks, np.nextafter(inside[:, -1], 0), out=marks)
        return (block % self.parts) * WIDTH + (inside <= marks[:, None]).sum(1)


class Reference:
    """A Q-network and its replay; `columns` are filled by the caller, then `update` learns."""

    def __init__(self, inputs: int, actions: int, hidden: list[int], capacity: int, **hyper: float) -> None:
        self.hyper = hyper
        sizes = (inputs, *hidden, actions)
        self.online = [p for a, b in pairwise(sizes) for p in (torch.zeros(b, a), torch.zeros(b))]
        self.target = [p.clone() for p in self.online]
        for p in self.online:
            p.requires_grad_()
        self.adam = torch.optim.Adam(self.online, lr=hyper["lr"], eps=hyper["adam_epsilon"], fused=True)
        n = capacity
        self.columns = {
            "obs": np.zeros((n, inputs), np.float32),
            "next_obs": np.zeros((n, inputs), np.float32),
            "allowed": np.zeros((n, actions), bool),
            "next_allowed": np.zeros((n, actions), bool),
            "corrected": np.zeros((n, actions), bool),
            "correction_open": np.zeros((n, actions), bool),
            "action": np.zeros(n, np.int64),
            "reward": np.zeros(n, np.float32),
            "discount": np.zeros(n, np.float32),
            "has_return": np.zeros(n, np.float32),
            "judged": np.zeros(n, np.float32),
        }
        self.protected = np.zeros(n, bool)
        self.strata = Strata(n)
        self.newest = 0
        self.size = 0
        self.updates = 0
        self.rng = np.random.default_rng(0)

    def update(self, batch_size: int) -> None:
        """Draws a batch, takes one gradient step, writes the priorities back."""
        rows, weights = self.draw(batch_size)
        batch = {name: torch.from_numpy(column.take(rows, 0)) for name, column in self.columns.items()}
        loss, error = self.losses(batch, torch.from_numpy(weights))
        for p in self.online:
            p.grad = None
        loss.backward()
        grads = [p.grad for p in self.online]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).item()
        if norm > self.hyper["grad_clip"]:
            torch._foreach_mul_(grads, self.hyper["grad_clip"] / (norm + 1e-6))
        self.adam.step()
        self.updates += 1
        if self.updates % self.hyper["target_network_update_freq"] == 0:
            torch._foreach_copy_(self.target, self.online)
        self.prioritise(rows, error.numpy())

    def draw(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows <int64>[B] (newest lesson, protected ones, the rest) and weights <float32>[B]."""
        hyper, strata = self.hyper, self.strata
        n_protected = round(batch_size * hyper["protected_share"])
        n_rest = batch_size - 1 - n_protected
        rows = np.concatenate(((self.newest,), strata.draw((n_rest, n_protected), self.rng)))
        totals = strata.sums.reshape(2, -1).sum(1)
        p = np.array((n_rest, n_protected)) / batch_size / totals @ strata.leaves[:, rows]
        p += (rows == self.newest) / batch_size
        beta = hyper["beta"] + (1 - hyper["beta"]) * min(1.0, self.updates / hyper["beta_updates"])
        weights = (self.size * p) ** -beta
        return rows, (weights / weights.max()).astype(np.float32)

    def prioritise(self, rows: np.ndarray, errors: np.ndarray) -> None:
        """|error| -> priority, in both strata."""
        priorities = (errors.astype(np.float64) + self.hyper["priority_floor"]) ** self.hyper["alpha"]
        self.strata.set(rows, np.stack((priorities, priorities * self.protected[rows])))

    def losses(self, batch: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and |error| <float32>[B]."""
        hyper, corrected, allowed = self.hyper, batch["corrected"], batch["allowed"]
        with torch.no_grad():
            q_next = q_values(self.online, batch["next_obs"]).masked_fill_(~batch["next_allowed"], -torch.inf)
            best = q_next.argmax(1, keepdim=True)
            boot = q_values(self.target, batch["next_obs"]).gather(1, best).squeeze(1).mul_(batch["discount"])
        q, taken = q_values(self.online, batch["obs"]), batch["action"].unsqueeze(1)
        td = (q.gather(1, taken).squeeze(1) - (batch["reward"] + boot)) * batch["has_return"]
        free = (allowed & ~corrected).scatter_(1, taken, False).float()
        value, share = (batch["judged"] * boot).unsqueeze(1), 1 / free.sum(1).clamp_(min=1)
        pull = (q - (value + hyper["untried_value"])) * free
        anchor = hyper["anchor_weight"] * share * pull.square().sum(1)
        apart = (td.unsqueeze(1) * free - pull).square().sum(1)
        contrast = hyper["contrast_weight"] * share * batch["judged"] * batch["has_return"] * apart
        loss = (weights * td.square() + anchor + contrast).mean()
        gap = (q - (value + hyper["correction_value"])) * batch["correction_open"]
        rival = (q + hyper["margin"] * ~corrected).masked_fill(~(allowed | corrected), -torch.inf).amax(1)
        best_x = q.masked_fill(~corrected, -torch.inf).amax(1)
        margin = torch.where(corrected.any(1), rival - best_x, 0.0)
        loss = loss + hyper["correction_weight"] * (gap.square().sum(1) + margin).mean()
        with torch.no_grad():
            error = torch.maximum(td.abs(), torch.maximum(margin, gap.abs().amax(1)))
        return loss, error


def q_values(parameters: list[Tensor], x: Tensor) -> Tensor:
    """<float32>[B, D] -> <float32>[B, A]."""
    *hidden, (weight, bias) = zip(parameters[::2], parameters[1::2], strict=True)
    for w, b in hidden:
        x = relu(linear(x, w, b), inplace=True)
    return linear(x, weight, bias)
