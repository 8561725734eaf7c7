"""One process: gRPC, journal, acknowledgements, policy broadcast, operator calls.

It never imports torch or ray: it must answer within a millisecond while the trainer, its child process,
computes, and go on acknowledging and broadcasting when the trainer dies.
"""

from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.server import serve

__all__ = ["ServiceConfig", "serve"]
