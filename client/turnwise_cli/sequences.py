"""Are all facts there that actors were told are there? Each actor process numbers the facts it takes up."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from turnwise_learner.journal import JournalReader, Row, number_of

_SHOWN_RANGES = 5


class Sequences:
    """Takes in facts that pass through `of`; `missing` compares their numbers with what actors were told.

    Args:
        journal: What actors were told is read now: it is true of what is read of the journal from now on.
    """

    def __init__(self, journal: JournalReader) -> None:
        self._actors, not_kept = journal.sequences()
        self._numbers: defaultdict[str, array[int]] = defaultdict(lambda: array("Q"))
        for incarnation, sequence in not_kept:
            self._numbers[incarnation].append(sequence)
        self.numbered = 0
        """Facts that have a number."""

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows, whose facts are taken in."""
        for row in rows:
            if row.fact.sequence:
                self.numbered += 1
                incarnation, sequence = number_of(row.fact)
                self._numbers[incarnation].append(sequence)
            yield row

    def missing(self) -> list[str]:
        """A sentence for each actor process of whose facts some are not there that it was told are."""
        told = []
        for incarnation, address, through in self._actors:
            gaps = list(_gaps(self._numbers[incarnation], through))
            if gaps:
                ranges = [f"{a}" if a == b else f"{a} to {b}" for a, b in gaps[:_SHOWN_RANGES]]
                more = f" and {len(gaps) - _SHOWN_RANGES} more gaps" if len(gaps) > _SHOWN_RANGES else ""
                count = sum(b - a + 1 for a, b in gaps)
                told.append(
                    f"actor {address} (process {incarnation}) was told that its facts 1 to {through} are in "
                    f"the journal; {count} are not: {', '.join(ranges)}{more}"
                )
        return told

    def awaited(self) -> int:
        """Numbers below others of their process that are not there: under way, spooled, or gone with it."""
        through = {incarnation: told for incarnation, _, told in self._actors}
        return sum(
            b - a + 1
            for incarnation, numbers in self._numbers.items()
            for a, b in _gaps(numbers, max(numbers, default=0))
            if a > through.get(incarnation, 0)
        )


def _gaps(numbers: array[int], through: int) -> Iterator[tuple[int, int]]:
    """First and last of each run of numbers from 1 to `through` that are not there."""
    given = np.frombuffer(numbers, np.uint64)
    there = np.unique(np.concatenate(([0], given[given <= through], [through + 1])).astype(np.uint64))
    for at in np.flatnonzero(np.diff(there) > 1):
        yield int(there[at]) + 1, int(there[at + 1]) - 1
