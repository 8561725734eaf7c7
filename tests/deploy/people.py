"""Simulated frontends on a machine of the cluster's network: `people.py ADDRESSES SEED LOG`.

Talk until LOG.stop exists, end their dialogues, and write what they know (`frontends.ClientLog`) to LOG. They
bring what TURNWISE_CA and TURNWISE_TOKEN_FILE name.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from frontends import ClientLog, Frontends
from turnwise_actor.access.client_access import ClientAccess

PEOPLE = 8


def access() -> ClientAccess:
    """From the environment."""
    ca, token = (os.environ.get(f"TURNWISE_{name}") for name in ("CA", "TOKEN_FILE"))
    return ClientAccess(ca=Path(ca) if ca else None, token_file=Path(token) if token else None)


async def talk(addresses: tuple[str, ...], seed: int, log: Path) -> None:
    """Until they are asked to stop."""
    people = Frontends(addresses, PEOPLE, seed, access=access())
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
    counted = {name: Counter(content[name]) for name in ("attempts", "errors")}
    return ClientLog(**{**content, **counted})


if __name__ == "__main__":
    asyncio.run(talk(tuple(sys.argv[1].split(",")), int(sys.argv[2]), Path(sys.argv[3])))
