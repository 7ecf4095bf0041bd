"""Processes of a pool, which end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

_WAIT = 2.0


def end_with_parent() -> None:
    """End this process as SIGTERM does, its state saved, once the one that started it is gone: it may be killed.

    A pool's own processes would wait for work without end.
    """
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    """Send the signal until it ends the process: while a network is trained it only ends the training."""
    if parent := multiprocessing.parent_process():
        parent.join()
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_WAIT)
