"""Starts a program that ends when its parent does: `python leash.py PARENT_PID PROGRAM ARGUMENT...`.

Run as a file, with the standard library alone, before the program replaces it. A hook between fork and
exec would do the same, but is unsafe in a parent with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Asks the kernel for SIGTERM at the parent's death, then becomes the program.

    The kernel watches the *thread* that started this process, so that thread must live as long as the
    parent means to keep its children. Elsewhere than on Linux the program is started without the leash.
    """
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the leash was on
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
