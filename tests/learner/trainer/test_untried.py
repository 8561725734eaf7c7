"""What was tried and did well ranks above what nobody tried, what did badly below: against a table."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from turnwise_actor.policy import Domain, Encoder, Network, RawObservation
from turnwise_learner.trainer.algorithm import TurnwiseDQN, TurnwiseDQNConfig
from turnwise_learner.trainer.turns import TurnRecord

pytestmark = [pytest.mark.usefixtures("_ray"), pytest.mark.filterwarnings("ignore")]

STATES, ACTIONS, TURNS, DIALOGUES = 6, 5, 3, 6


def domain(n_step: int) -> Domain:
    return Domain.from_mapping(
        {
            "name": "desk",
            "state": {"slots": {"at": [f"s{i}" for i in range(STATES)]}},
            "actions": [{"id": f"a{i}", "say": "…"} for i in range(ACTIONS)],
            "learning": {"gamma": 0.9, "n_step": n_step},
        }
    )


Step = tuple[int, int, float | None]
"""State, action, rating; None: not rated."""


def dialogues(seed: int, rated_at_the_end: bool) -> Iterator[list[Step]]:
    """Each action of a state is good or bad for ever, so that no two returns contradict each other."""
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(ACTIONS), (STATES, 1)), axis=1)
    for _ in range(DIALOGUES):
        success = rng.random() < 0.5
        states = rng.permutation(STATES)[:TURNS].tolist()
        actions = [int(rng.choice(order[s, :2] if success else order[s, 2:])) for s in states]
        said = [None if rated_at_the_end and i < TURNS - 1 else 2.0 * success - 1 for i in range(TURNS)]
        yield list(zip(states, actions, said, strict=True))


def records(talk: list[Step], number: int, encoder: Encoder) -> tuple[TurnRecord, ...]:
    everything = np.ones(ACTIONS, bool)
    return tuple(
        TurnRecord(
            f"{number}-{i}",
            encoder.encode(RawObservation(text=None, slots={"at": f"s{state}"}, features=None)),
            everything,
            action,
            0.0 if rating is None else rating,
            successor="" if i == TURNS - 1 else f"{number}-{i + 1}",
            terminated=i == TURNS - 1,
            rated_ms=0 if rating is None else 1,
        )
        for i, (state, action, rating) in enumerate(talk)
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rated_at_the_end", "n_step"), [(False, 1), (False, 3), (True, 3)])
def test_good_ranks_above_the_untried_and_bad_below(rated_at_the_end: bool, n_step: int, seed: int) -> None:
    desk = domain(n_step)
    torch.manual_seed(seed)  # the first weights
    algorithm, encoder = TurnwiseDQN(config=TurnwiseDQNConfig.for_domain(desk)), Encoder(desk)
    heard: dict[int, dict[int, float]] = defaultdict(dict)
    for number, talk in enumerate(dialogues(seed, rated_at_the_end)):
        algorithm.replay.apply(records(talk, number, encoder), lesson=True)
        for state, action, _ in talk:
            heard[state][action] = talk[-1][2] or 0.0
    assert heard
    algorithm.learn(800)
    compared = 0
    for state, outcomes in heard.items():
        observation = encoder.encode(RawObservation(text=None, slots={"at": f"s{state}"}, features=None))
        q = _q_values(algorithm, observation)
        untried = [q[a] for a in range(ACTIONS) if a not in outcomes]
        for action, outcome in outcomes.items():
            for other in untried:
                assert (q[action] - other) * outcome > 0, (state, action, outcome, q)
                compared += 1
    assert compared > 10


def _q_values(algorithm: TurnwiseDQN, observation: np.ndarray) -> np.ndarray:
    values: np.ndarray = Network(algorithm.module.spec, algorithm.module.policy_parameters()).q_values(
        observation
    )
    return values
