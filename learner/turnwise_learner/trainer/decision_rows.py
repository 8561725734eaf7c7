"""Which row of replay a decision lies in: a chained hash table over the id column, 8 to 12 bytes a row.

A dict of strings would take 150 bytes a row, at a million turns more than all their masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np


class DecisionRows(Mapping[str, int]):
    """decision id -> row.

    Args:
        ids: <bytes>[N], empty where a row is free; written by this class alone.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._longest = ids.dtype.itemsize
        buckets = 1 << max(6, (len(ids) - 1).bit_length())
        self._mask = buckets - 1
        # Row + 1, so that memory is touched only as rows come; 0 ends a chain.
        self._heads = np.zeros(buckets, np.int32).data
        self._next = np.zeros(len(ids), np.int32).data
        self._count = 0
        for row in np.flatnonzero(ids).tolist():
            self._chain(bytes(ids[row]), row)

    def add(self, decision_id: str, row: int) -> None:
        """Puts a new decision into a free row.

        Raises:
            ValueError: The id is empty or too long.
        """
        key = decision_id.encode()
        if not 0 < len(key) <= self._longest:
            raise ValueError(
                f"a decision id of {len(key)} bytes; wanted 1 to {self._longest}: {decision_id!r}"
            )
        self._ids[row] = key
        self._chain(key, row)

    def is_used(self, row: int) -> bool:
        """Whether a decision lies in a row."""
        return bool(self._ids[row])

    def remove(self, row: int) -> None:
        """Frees a row in use."""
        bucket = hash(bytes(self._ids[row])) & self._mask
        link = self._heads[bucket]
        if link == row + 1:
            self._heads[bucket] = self._next[row]
        else:
            while self._next[link - 1] != row + 1:
                link = self._next[link - 1]
            self._next[link - 1] = self._next[row]
        self._ids[row] = b""
        self._count -= 1

    def _chain(self, key: bytes, row: int) -> None:
        bucket = hash(key) & self._mask
        self._next[row] = self._heads[bucket]
        self._heads[bucket] = row + 1
        self._count += 1

    def find(self, decision_id: str) -> int:
        """The row; -1: none."""
        key = decision_id.encode()
        link = self._heads[hash(key) & self._mask]
        while link:
            if self._ids[link - 1] == key:
                return link - 1
            link = self._next[link - 1]
        return -1

    def __getitem__(self, decision_id: str) -> int:
        row = self.find(decision_id)
        if row < 0:
            raise KeyError(decision_id)
        return row

    def __iter__(self) -> Iterator[str]:
        return (self._ids[row].decode() for row in np.flatnonzero(self._ids))

    def __len__(self) -> int:
        return self._count
