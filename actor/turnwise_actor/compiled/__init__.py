"""What a C compiler made of the turn path when the package was built; without it, the same is done in Python.

`turns` needs OpenSSL's libcrypto besides, `http2` nghttp2.

`TURNWISE_COMPILED=no` does without it, for comparison.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType


def compiled(name: str) -> ModuleType | None:
    """A module of this folder; None: it was not built, or is not wanted."""
    if os.environ.get("TURNWISE_COMPILED") == "no" or sys.byteorder != "little":
        return None
    try:
        return import_module(f"{__name__}.{name}")
    except ImportError:  # not built, or built where a library is that is missing here
        return None


FORWARD = compiled("forward")
