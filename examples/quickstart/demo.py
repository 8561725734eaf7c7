"""Teaches the quickstart bot twenty phrases, stops it, and starts it again.

A scripted teacher rates every answer +1 or -1 and never says what would have been right. The learning
curve is drawn in the terminal and in demo-out/learning-curve.png; the data stays in demo-out/data.
"""

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curve import draw_in_terminal, save_png
from deployment import Deployment
from rich.console import Console
from rich.live import Live
from rich.table import Table
from teacher import Teacher, load_phrases

import turnwise

HERE = Path(__file__).resolve().parent
ACTORS = 2
EXAMINE_EVERY = 10
SETTLE_TIMEOUT_S = 20.0


class DemoError(Exception):
    """The demo has not shown what it promises; the message says what is missing."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: Path
    seed: int
    limit: int
    """Ratings after which the bot counts as not having learned."""
    goal: int
    """Phrases of the twenty to be answered right, in two examinations in a row."""


def main() -> int:
    """Runs the demo; 0 when the bot has learned and has gone on from where it was stopped."""
    options = parse_options()
    console = Console()
    data = options.out / "data"
    shutil.rmtree(data, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "up.log"
    log.unlink(missing_ok=True)
    deployment = Deployment(HERE / "domain.yaml", data, ACTORS, log)
    try:
        run(options, console, deployment)
    except (DemoError, RuntimeError, turnwise.TurnwiseError) as error:
        console.print(
            f"The demo failed: {error}\nLogs: {data / 'logs'}, {log}", style="bold red", markup=False
        )
        return 1
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        return 130
    finally:
        with console.status("stopping"):
            deployment.stop()
    return 0


def parse_options() -> Options:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=HERE.parents[1] / "demo-out", help="folder for data and curve"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the teacher: phrases and lengths of dialogues"
    )
    parser.add_argument("--limit", type=int, default=1500, help="ratings after which to give up")
    parser.add_argument("--goal", type=int, default=19, help="phrases to be answered right, of twenty")
    return Options(**vars(parser.parse_args()))


def run(options: Options, console: Console, deployment: Deployment) -> None:
    """The whole demo.

    Raises:
        DemoError: The bot has not learned, or has not gone on from where it was.
    """
    began = time.monotonic()
    phrases = load_phrases(HERE / "phrases.yaml")
    start(deployment, console, "Starting a learner and two actors")
    with turnwise.Client(deployment.actors) as bot:
        teacher = Teacher(bot, phrases, options.seed)
        exams = teach(teacher, deployment, console, options)
    draw_in_terminal(exams, len(phrases), console)
    save_png(exams, len(phrases), options.out / "learning-curve.png")
    if teacher.unlearned:
        console.print(f"{teacher.unlearned} lessons were not learned within the wait", style="yellow")

    before = settled_status(deployment)
    with console.status("Stopping: actors drain, the learner saves a checkpoint"):
        code = deployment.stop()
    if code:
        raise DemoError(f"`turnwise up` ended with exit code {code}: {deployment.last_words()}")
    start(deployment, console, "Stopped. Starting again from the data folder")
    after = deployment.status_now()
    with turnwise.Client(deployment.actors) as bot:
        right = Teacher(bot, phrases, options.seed).examine()
    console.print(counters_table(before, after))
    check_resumed(before, after, right, options.goal)
    console.print(
        f"Taught with {teacher.ratings} ratings: {exams[-1][1]} of {len(phrases)} right. Stopped, "
        f"started again: {right} of {len(phrases)} right, nothing lost. "
        f"{time.monotonic() - began:.0f} s in all.",
        style="bold green",
    )
    console.print(f"Curve: {options.out / 'learning-curve.png'}. Talk to it yourself:")
    console.print(
        f"  turnwise up --domain {HERE / 'domain.yaml'} --data {options.out / 'data'}", soft_wrap=True
    )
    console.print("  turnwise chat", soft_wrap=True)


def start(deployment: Deployment, console: Console, what: str) -> None:
    """Starts the deployment, showing what it waits for."""
    began = time.monotonic()
    with console.status(what) as status, ticking(lambda: status.update(f"{what}: {deployment.last_words()}")):
        deployment.start()
    console.print(f"{what}: ready after {time.monotonic() - began:.0f} s", markup=False, highlight=False)


def teach(
    teacher: Teacher, deployment: Deployment, console: Console, options: Options
) -> list[tuple[int, int]]:
    """Teaches until two examinations in a row reach the goal.

    Returns:
        (ratings, phrases right) of each examination.

    Raises:
        DemoError: The limit of ratings was reached first.
    """
    exams = [(0, teacher.examine())]
    began = time.monotonic()
    next_exam = EXAMINE_EVERY
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        while not (len(exams) > 1 and min(exams[-1][1], exams[-2][1]) >= options.goal):
            if teacher.ratings >= options.limit:
                best = max(right for _, right in exams)
                raise DemoError(
                    f"not learned: at best {best} of {len(teacher.phrases)} phrases right after "
                    f"{teacher.ratings} ratings; wanted {options.goal}, twice in a row"
                )
            teacher.dialogue()
            if teacher.ratings >= next_exam:
                next_exam = teacher.ratings + EXAMINE_EVERY
                exams.append((teacher.ratings, teacher.examine()))
                if not console.is_terminal:
                    console.print(
                        f"{teacher.ratings} ratings: {exams[-1][1]} of {len(teacher.phrases)} right"
                    )
            if console.is_terminal:
                live.update(progress(teacher, deployment.status, exams, began), refresh=True)
    return exams


def progress(teacher: Teacher, status: dict[str, Any], exams: list[tuple[int, int]], began: float) -> Table:
    """What can be told while teaching."""
    recent = teacher.verdicts[-50:]
    per_minute = teacher.ratings / max(1e-9, time.monotonic() - began) * 60
    updates = status.get("trainer", {}).get("updates", 0)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("turns", f"{teacher.turns}")
    table.add_row("ratings", f"{teacher.ratings}  ({per_minute:.0f} a minute)")
    table.add_row("right, last 50", f"{100 * sum(recent) / max(1, len(recent)):.0f} %")
    table.add_row("examined", f"{exams[-1][1]} of {len(teacher.phrases)} right after {exams[-1][0]} ratings")
    table.add_row("policy", teacher.version)
    table.add_row("updates", f"{updates}")
    return table


def settled_status(deployment: Deployment) -> dict[str, Any]:
    """The learner's status once it has learned all it was taught.

    Raises:
        DemoError: It owes updates for too long.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        status = deployment.status_now()
        trainer = status["trainer"]
        if trainer["journal_cursor"] >= status["journal_cursor"] and not trainer["updates_owed"]:
            return status
        if time.monotonic() > deadline:
            raise DemoError(f"the learner still owes {trainer['updates_owed']} updates")
        time.sleep(0.2)


COUNTERS = {
    "turns": "turns learned from",
    "rated_turns": "rated turns",
    "updates": "updates",
    "replay_rows": "turns in replay",
}


def counters_table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """The counters when it stopped and when it went on."""
    table = Table("", "stopped with", "went on with")
    for name, words in COUNTERS.items():
        table.add_row(words, f"{before['trainer'][name]:,}", f"{after['trainer'][name]:,}")
    table.add_row("journal cursor", f"{before['journal_cursor']:,}", f"{after['journal_cursor']:,}")
    table.add_row("policy version", *(version(told["published"]) for told in (before, after)))
    return table


def version(published: dict[str, Any]) -> str:
    """Of a policy, as people write it."""
    return f"{published['generation']}.{published['number']}"


def check_resumed(before: dict[str, Any], after: dict[str, Any], right: int, goal: int) -> None:
    """Compares the two runs.

    Raises:
        DemoError: Something was forgotten.
    """
    counts = {name: (before["trainer"][name], after["trainer"][name]) for name in COUNTERS}
    counts["journal_cursor"] = before["journal_cursor"], after["journal_cursor"]
    for name, (was, now) in counts.items():
        if now < was:
            raise DemoError(f"not resumed: {name} was {was} before the stop and is {now} now")
    if after["published"]["generation"] <= before["published"]["generation"]:
        raise DemoError("not resumed: the learner has not begun a new generation")
    if right < goal:
        raise DemoError(f"not resumed: {right} phrases right after the start; wanted {goal}")


@contextmanager
def ticking(tick: Any, every_s: float = 0.3) -> Iterator[None]:
    """Calls `tick` now and then while the block runs."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(every_s):
            tick()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
