"""A journal as a service writes it, without the service."""

import json
import sqlite3
from pathlib import Path

from turnwise_learner.journal import create_schema, journal_path
from turnwise_learner.store.journal_copy import JournalCopy
from turnwise_learner.store.objects import ObjectStore


class Written:
    """The journal of a data folder; made where there is none."""

    def __init__(self, data: Path) -> None:
        data.mkdir(exist_ok=True)
        self.data, new = data, not journal_path(data).exists()
        self._connection = sqlite3.connect(journal_path(data), isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        if new:
            create_schema(self._connection)
            self._connection.execute("INSERT INTO domains VALUES ('f', '{}', 1)")
        self.set_meta("epoch", str(self.epoch + 1))

    @property
    def epoch(self) -> int:
        return int(self.meta["epoch"])

    @property
    def meta(self) -> dict[str, str]:
        return dict(self._connection.execute("SELECT name, value FROM meta"))

    def set_meta(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def begin_generation(self, generation: int) -> None:
        self._connection.execute("INSERT INTO generations VALUES (?, 'start', 1)", (generation,))

    def tell_actor(self, through: int) -> None:
        self._connection.execute("INSERT INTO actors VALUES ('0123456789abcdef', 'a:1', ?)", (through,))

    def keep_not(self, sequence: int) -> None:
        self._connection.execute("INSERT INTO not_kept VALUES ('0123456789abcdef', ?)", (sequence,))

    def add(self, count: int, text: str = "hello") -> None:
        """Facts of alternating kinds."""
        first = self.last + 1
        rows = [
            (f"k{text}{n}", f"d{n // 5}", n % 2 + 1, n, f"{text} {n}".encode())
            for n in range(first, first + count)
        ]
        self._connection.executemany(
            "INSERT INTO facts (key, dialogue_id, kind, time_ms, actor, body) VALUES (?, ?, ?, ?, 'a', ?)",
            rows,
        )

    @property
    def last(self) -> int:
        return int(self._connection.execute("SELECT coalesce(max(seq), 0) FROM facts").fetchone()[0])

    @property
    def facts(self) -> list[tuple[object, ...]]:
        return self._connection.execute("SELECT * FROM facts ORDER BY seq").fetchall()

    @property
    def counts(self) -> dict[str, int]:
        return json.loads(self.meta["counts"])

    def table(self, name: str) -> list[tuple[object, ...]]:
        return self._connection.execute(f"SELECT * FROM {name}").fetchall()

    def copy_to(self, store: ObjectStore) -> JournalCopy:
        return JournalCopy(store, journal_path(self.data), self.epoch, self.data / ".store")

    def close(self) -> None:
        self._connection.close()
