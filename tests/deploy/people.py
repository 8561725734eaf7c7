"""Simulated frontends on a machine of the cluster's network: `people.py ADDRESSES SEED LOG`.

Talk until LOG.stop exists, end their dialogues, and write what they know (`frontends.ClientLog`) to LOG.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from frontends import ClientLog, Frontends

PEOPLE = 8


async def talk(addresses: tuple[str, ...], seed: int, log: Path) -> None:
    """Until they are asked to stop."""
    people = Frontends(addresses, PEOPLE, seed)
    talking = asyncio.create_task(people.run())
    while not log.with_suffix(".stop").exists():
        await asyncio.sleep(0.2)
        log.with_suffix(".turns").write_text(str(len(people.log.answers)))
    people.stop()
    await talking
    aside = log.with_suffix(".new")
    aside.write_text(json.dumps(vars(people.log)))
    aside.rename(log)


def read_log(path: Path) -> ClientLog:
    """What they wrote."""
    content = json.loads(path.read_text())
    return ClientLog(**{**content, "attempts": Counter(content["attempts"])})


if __name__ == "__main__":
    asyncio.run(talk(tuple(sys.argv[1].split(",")), int(sys.argv[2]), Path(sys.argv[3])))
