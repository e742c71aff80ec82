"""Work in forked processes that are killed at a moment."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

_DONE = 0


def life(work: Callable[[], int | None], life_s: float | None, until: Callable[[], bool] = lambda: True) -> int:
    """Do the work, which may return an exit status, in a forked process; kill it ``life_s`` after ``until`` holds.

    Returns its exit status, or minus the signal.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work() or _DONE
        except BaseException as error:  # nothing of this may reach the parent's code
            print(f"a life ended by itself: {error!r}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            os._exit(code)
    if life_s is not None:
        deadline = None
        while deadline is None or time.monotonic() < deadline:
            if deadline is None and until():
                deadline = time.monotonic() + life_s
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02 if deadline is None else min(0.001, max(deadline - time.monotonic(), 0)))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if life_s is None and code != _DONE:
        sys.exit(f"error: work left alone ended with {code}")
    return code
