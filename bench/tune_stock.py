"""Finds stock RLlib DQN's best settings for `lessons.py`: a grid, on seeds that the benchmark does not use.

Prints a line a configuration: lessons to 95 % of each seed, `-` where it was not reached.
"""

import argparse
import statistics
import sys
from typing import Any

from course import make_task
from stock import MOST_LESSONS, TUNED, teach_stock

FIRST_SEED = 1001
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"epsilon": 0.3},
    {"epsilon": 0.7},
    {"epsilon": 1.0},
    {"epsilon": [(0, 1.0), (250, 0.1)]},
    {"epsilon": [(0, 1.0), (600, 0.1)]},
    {"updates": 1},
    {"updates": 8},
    {"lr": 5e-4},
    {"lr": 3e-3},
    {"dueling": True},
    {"td_error_loss_fn": "huber"},
    {"hiddens": [256]},
)
"""Each changes the present settings in one place."""


def main() -> int:
    """Tries every configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    for change in CHANGES:
        courses = [
            teach_stock(make_task(seed), 0.95, TUNED | change)
            for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
        ]
        reached = [course.reached(0.95) for course in courses]
        median = statistics.median(lessons or MOST_LESSONS for lessons in reached)
        print(f"{median:6.0f}", change or "TUNED", *(lessons or "-" for lessons in reached), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
