"""Processes that may be killed: commands of pixsim, each in a process of its own, in milliseconds.

Importing what a command needs takes seconds. So one process, the forge, imports it once, starts no
thread, and forks a child for each command. A second fork stands between the two, the guardian: it
kills the command where the order says so, and reports what became of it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

KILLED = -int(signal.SIGKILL)
LONGEST_SECONDS = 120.0


@dataclass(frozen=True)
class Fault:
    """What is to go wrong with a command; nothing by default.

    Attributes
    ----------
    operation
        The number, from 0, of the operation on files at which it happens.
    below
        The folder, in that of the order, whose operations count; default: all of it.
    errno
        What that operation fails with; without one the process is killed there.
    lasting
        Whether every operation after it fails as well.
    phase, seconds
        The phase in which the process is killed, and how long after it began.
    file_bytes
        The size that no file may exceed: the writing of a larger one is cut off there.
    """

    operation: int | None = None
    below: str = ""
    errno: int | None = None
    lasting: bool = False
    phase: str | None = None
    seconds: float = 0.0
    file_bytes: int | None = None


@dataclass(frozen=True)
class Order:
    """A command line of pixsim, or a function of no arguments, to be run in a folder."""

    folder: Path
    words: tuple[str, ...] = ()
    function: Any = None
    fault: Fault = Fault()


@dataclass
class Outcome:
    """What became of an order.

    Attributes
    ----------
    code
        The exit code; `KILLED` after SIGKILL.
    text
        What was printed.
    value
        What the function returned.
    phases
        The phases that began, each with the seconds until the next one, or the end.
    operations
        The operations below the folder: phase, what, and on which file.
    """

    code: int = KILLED
    text: str = ""
    value: Any = None
    phases: list[tuple[str, float]] = field(default_factory=list)
    operations: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def phase(self) -> str:
        """The phase in which it ended."""
        return self.phases[-1][0] if self.phases else "start"

    @property
    def is_clear(self) -> bool:
        """Whether it succeeded, or ended with one line that begins with the program's name."""
        if self.code == 0:
            return True
        last = self.text.rstrip().rpartition("\n")[2]
        return self.code > 0 and "Traceback" not in self.text and last.startswith("pixsim: ")


class Pending:
    """A command that runs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def outcome(self) -> Outcome:
        """Wait for its end."""
        found: Outcome = self._connection.recv()
        self._connection.close()
        return found


class Forge:
    """Runs orders in processes that are ready at once; several may run at the same time."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        here = Path(__file__).parent
        # threads of libraries would not be there in a fork
        single = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")}
        paths = [str(here.parent), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.forge_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | single | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        theirs.close()
        self._connection, self._lock = Connection(mine.detach()), threading.Lock()

    def __enter__(self) -> Forge:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.wait(LONGEST_SECONDS)

    def start(self, order: Order) -> Pending:
        """Begin to run an order."""
        mine, theirs = socket.socketpair()
        with theirs, self._lock:
            self._connection.send("order")
            send_handle(self._connection, theirs.fileno(), self._process.pid)
        connection = Connection(mine.detach())
        connection.send(order)
        return Pending(connection)

    def run(
        self, folder: Path, *words: str, fault: Fault = Fault(), function: Any = None
    ) -> Outcome:
        """Run a command line in a folder, or a function, and wait for its end."""
        return self.start(Order(folder, words, function, fault)).outcome()


def receive(connection: Connection) -> Connection:
    """Take over the connection of an order, in the forge."""
    return Connection(recv_handle(connection))
