"""An actor: answers dialogue turns from the latest policy and keeps nothing about a dialogue."""

import os

# Before numpy is imported: a policy's products are small, and BLAS threads would wait for work by spinning.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Before gRPC is: its older poller hands a message over with a third of the wake-ups, and a turn on a stream
# costs a sixth less. A gRPC that has only the newer one says so in a line and goes on.
_OLDER_POLLER = "-event_engine_listener,-event_engine_client,-event_engine_for_all_other_endpoints"
os.environ.setdefault("GRPC_EXPERIMENTS", _OLDER_POLLER)
