"""An actor: answers dialogue turns from the latest policy and keeps nothing about a dialogue."""

import os

# Before numpy is imported: a policy's products are small, and BLAS threads would wait for work by spinning.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
