"""Loaded by dask into each worker process on this machine.

Ctrl-C at a terminal, and a batch system that ends a job, send their signal to every process of it.
Workers leave it to the client, which lets their tasks end and then closes them.
"""

from __future__ import annotations

import signal


def dask_setup(_: object) -> None:
    """Ignore the signals that drain a job."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
