"""Runs the benchmarks one after the other, in their short forms, and prints one table.

Exit code 0 when all of them ran, whatever their figures.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("lessons", "updates", "turns", "broadcast", "ingest", "reaction", "chaos", "soak")
AT_LEAST = {
    "tuned_stock_vs_ours",
    *("b32_vs_torch", "b256_vs_torch", "b32_vs_stock", "b256_vs_stock", "live8_vs_torch", "replay_1m_vs_10k"),
    *("stream_vs_echo", "unary_vs_echo", "coalesced_vs_echo", "stream_vs_serve", "unary_vs_serve"),
    *("two_processes", "vs_sqlite"),
}
"""Keys whose goal is a least value; that of the others is a highest one."""


def main() -> int:
    """Runs those asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=BENCHMARKS, help=f"some of {', '.join(BENCHMARKS)}")
    parser.add_argument("--full", action="store_true", help="the full runs instead of the short ones")
    options = parser.parse_args()
    reports = [run(name, options.full) for name in options.names]
    Console().print(table([report for report in reports if report is not None]))
    return 0 if all(report is not None for report in reports) else 1


def run(name: str, full: bool) -> dict[str, Any] | None:
    """The JSON object that a benchmark prints last; None: it could not run."""
    command = [sys.executable, str(HERE / f"{name}.py"), *([] if full else ["--short"])]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        return None
    report: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return report


def table(reports: list[dict[str, Any]]) -> Table:
    """A row a key."""
    rows = Table("benchmark", "key", "measured", "goal", "")
    for report in reports:
        for key, value in report["ratios"].items():
            goal, least = report["goals"][key], key in AT_LEAST
            met = value >= goal if least else value <= goal
            rows.add_row(
                report["name"],
                key,
                f"{value:.3g}",
                f"{'≥' if least else '≤'} {goal:g}",
                "met" if met else "missed",
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
