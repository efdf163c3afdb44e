"""The process that commands are forked from: everything is imported, no thread is running."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

import pipeline
from faults import objects, phases
from faults.forge import LONGEST_SECONDS, Order, Outcome, receive
from faults.watching import Watch
from pipeline.core.exact import NOWHERE
from pipeline.core.schema import METRICS
from pipeline.jobs import search_plan
from pipeline.kernels import backends
from pipeline.report import page
from pipeline.storage import blobs, lock_files

PLAIN_REPORT = "<!doctype html><title>a report without pictures</title>"
# what commands import late
_MORE = ("distributed", "dask.dataframe", "encodings.idna", "upath", objects.__name__)


def import_everything() -> None:
    """Import what any command needs, and load the compiled kernels, in this thread alone."""
    for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if "torch" not in found.name:  # a process four times as large takes as long again to fork
            importlib.import_module(found.name)
    for name in _MORE:
        importlib.import_module(name)
    for dtype in (np.uint8, np.uint16):
        use = backends.load("cpu", 1)
        images, positions = np.zeros((2, 6), dtype), np.zeros(2, np.int64)
        use.class_sums(images, positions, 1)
        use.histograms(images, positions, 1)
        for metric in METRICS:
            prepared = use.prepare_search(images, (2, 3), metric)
            use.nearest(images, prepared, positions, *np.full((2, 2, 1), NOWHERE))
    # a search of so few images takes several steps and groups all the same
    search_plan._STEP_BYTES, search_plan._GROUP_BYTES = 6 * 20, 8 * 20
    # processes are killed, the machine is not: what the kernel has is there
    os.fsync = lambda descriptor: None
    # drawing takes a second, and many times the memory
    page.render_report = lambda run, content=None: PLAIN_REPORT
    # nothing else answers for the object store of the tests
    blobs.FIRST_PAUSE_SECONDS = lock_files.SETTLE_SECONDS = 0.0
    gc.freeze()  # children need not look at all that again


def main() -> None:
    """Fork a guardian for each order until the other side hangs up."""
    connection = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guardians are not waited for
    import_everything()
    with contextlib.suppress(EOFError):
        while connection.recv():
            with receive(connection) as order:
                if not os.fork():
                    connection.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _guard(order)
                    os._exit(0)


def _guard(connection: Connection) -> None:
    """Run an order in a child, kill it where the order says so, and report."""
    order: Order = connection.recv()
    order.folder.mkdir(parents=True, exist_ok=True)
    (reported, reporting), (printed, printing) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        connection.close()
        os.setsid()
        _perform(order, Connection(reporting, readable=False), printing)
    os.close(reporting)
    os.close(printing)
    with Connection(reported, writable=False) as reports:
        found = _follow(child, order, reports)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):  # worker processes that it left behind
        os.killpg(child, signal.SIGKILL)
    with os.fdopen(printed, encoding="utf-8", errors="replace") as text:
        found.text = text.read()
    found.code = os.waitstatus_to_exitcode(status)
    connection.send(found)


def _follow(child: int, order: Order, reports: Connection) -> Outcome:
    """Note what a child reports until it ends; kill it in time."""
    found, fault, begun = Outcome(), order.fault, time.monotonic()
    phase, entered = "start", begun
    deadline: float | None = begun + LONGEST_SECONDS
    # the kill may tear the report that the child was sending, which then is an OSError
    with contextlib.suppress(EOFError, OSError):
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not wait([reports], left):
                os.killpg(child, signal.SIGKILL)
                deadline = None  # what it reported before is still to be read
                continue
            kind, value = reports.recv()
            if kind == "phase":
                now = time.monotonic()
                found.phases.append((phase, now - entered))
                phase, entered = value, now
                if phase == fault.phase and deadline is not None:
                    deadline = now + fault.seconds
            elif kind == "value":
                found.value = value
            else:
                found.operations = value
    found.phases.append((phase, time.monotonic() - entered))
    return found


def _perform(order: Order, reports: Connection, printed: int) -> None:
    """Be the process of a command; does not return."""
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(order.folder)
    watch = Watch(order.folder, order.fault)

    def enter(phase: str) -> None:
        watch.phase = phase
        reports.send(("phase", phase))

    phases.announce(enter)
    if order.fault.file_bytes is not None:
        limit = order.fault.file_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    watch.install()
    code = 1
    try:
        code, value = _result(order)
        reports.send(("value", value))
        reports.send(("operations", watch.seen))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _result(order: Order) -> tuple[int, Any]:
    if order.function is not None:
        return 0, order.function()
    from pipeline.cli import main as command_line

    return command_line(order.words), None


if __name__ == "__main__":
    main()
