"""What is taught, to whom, and how: one kind for each figure of the benchmark of teacher effort."""

from dataclasses import dataclass, field

from course import Task, make_task
from live import Manner

RATED_EACH_TURN = {"gamma": 0.9, "n_step": 1}
"""The bot sees the phrase alone. Every turn is rated, so that longer returns bring variance only."""
RATED_AT_THE_END = {"gamma": 0.9, "n_step": 3}


@dataclass(frozen=True)
class Kind:
    """One way of teaching."""

    name: str
    key: str = ""
    """The ratio's key; empty: reported among the figures only."""
    goal: float = 0.0
    threshold: float = 0.95
    phrases: int = 20
    actions: int = 10
    flip_rate: float = 0.0
    corrected: bool = False
    wordings: int = 1
    manner: Manner = field(default_factory=Manner)
    most_seeds: int = 1000
    """Where one seed takes so long that the full run has time for a few only."""
    lessons: int = 0
    """Lessons in all, where there is no limit to compare with; 0: until the threshold is reached."""

    def task(self, seed: int) -> Task:
        """What this seed is taught."""
        return make_task(seed, self.phrases, self.actions, self.flip_rate, self.corrected, self.wordings)


KINDS = (
    Kind("rewards", "rewards_95_vs_limit", 1.25),
    Kind("corrections", "corrections_95_vs_limit", 1.5, corrected=True),
    Kind("noisy", "noisy_90_vs_limit", 1.6, threshold=0.9, flip_rate=0.1),
    Kind("three_turns", "three_turns_95_vs_limit", 1.4, manner=Manner(turns=3, learning=RATED_EACH_TURN)),
    Kind("interleaved", manner=Manner(open_dialogues=20), most_seeds=10),
    Kind("paraphrases", wordings=3, most_seeds=10),
    Kind(
        "end_reward",
        manner=Manner(turns=3, reward_at_end=True, learning=RATED_AT_THE_END),
        most_seeds=5,
        lessons=1000,
    ),
    Kind("large", phrases=100, actions=30, manner=Manner(actions=30), most_seeds=2),
)
STOCK = Kind("tuned_stock", "tuned_stock_vs_ours", 3.0)
"""The lessons of `rewards`, given to stock RLlib DQN; at least the goal is wanted."""
SHORT = ("rewards", "corrections")
