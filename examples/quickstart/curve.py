"""The learning curve, in the terminal and as a picture."""

from pathlib import Path

import matplotlib
import plotext
from rich.console import Console
from rich.text import Text

matplotlib.use("Agg")

from matplotlib import pyplot

Exams = list[tuple[int, int]]
"""(ratings, phrases right) of each examination."""


def draw_in_terminal(exams: Exams, phrases: int, console: Console) -> None:
    """Prints the curve."""
    figure = plotext.figure
    figure.clear()
    curve = figure.signal([ratings for ratings, _ in exams], [100 * right / phrases for _, right in exams])
    curve.lines()
    figure.draw(curve)
    figure.plot_size(min(100, console.width), 18)
    figure.title("phrases answered right, %")
    figure.label("ratings", "x")
    console.print(Text.from_ansi(str(figure.build())))


def save_png(exams: Exams, phrases: int, path: Path) -> None:
    """Draws the curve to a file."""
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    axes.plot([ratings for ratings, _ in exams], [100 * right / phrases for _, right in exams], marker=".")
    axes.axhline(95, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="ratings", ylabel="phrases answered right, %", ylim=(0, 102), title="quickstart")
    axes.set_xlim(left=0)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
