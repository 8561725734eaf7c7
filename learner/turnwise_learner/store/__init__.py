"""A store elsewhere for checkpoints and the journal: any folder or bucket that pyarrow can write to.

    turnwise.txt                                      says what this is
    journal/state.json                                journal id, epoch, standing orders, domains, generations
    journal/facts-<first>-<last>-e<epoch>-l<level>.sqlite.gz   facts by position: immutable, contiguous
    checkpoints/step-…/…, turnwise.json last          as in the data folder; without turnwise.json incomplete
    checkpoints/LATEST                                name of the newest complete one
    restores/<epoch>.json                             who took over: the epoch and generation to go on above

The service's process copies in the background (`shipping`); a learner that starts without a journal fetches
what is there (`restore`). Nothing is renamed: what is not complete is not named by anything that is.
"""

from turnwise_learner.store.config import StoreConfig
from turnwise_learner.store.errors import StoreError, StoreRefusedError

__all__ = ["StoreConfig", "StoreError", "StoreRefusedError"]
