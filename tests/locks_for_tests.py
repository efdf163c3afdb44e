"""What tests of locks share: processes that hold them, and locks of dead ones."""

from __future__ import annotations

import subprocess
import sys

from pipeline.storage.lock_files import LOCK, Holder
from pipeline.storage.processes import Process, machine

CHILD = """
import sys
from contextlib import ExitStack
from pipeline.core import paths
from pipeline.storage import locks, processes
from pipeline.core.errors import InUseError
if len(sys.argv) > 1:
    processes.machine = lambda: sys.argv[1]
    locks.BEAT_SECONDS = locks.REMOTE_BEAT_SECONDS = 0.05
stack = ExitStack()
for line in sys.stdin:
    verb, _, place = line.strip().partition(" ")
    said = []
    try:
        if verb == "take":
            stack.enter_context(locks.held(paths.locate(place), "run", said.append))
        elif verb == "check":
            locks.check(paths.locate(place))
        else:
            stack.close()
        print("done", *said, flush=True)
    except InUseError as error:
        print("refused", error, flush=True)
"""


class Child:
    """A process that takes locks and gives them back, as it is told."""

    def __init__(self, elsewhere=""):
        arguments = [elsewhere] if elsewhere else []
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, verb, place=""):
        self.process.stdin.write(f"{verb} {place}\n")
        self.process.stdin.flush()

    def answer(self):
        return self.process.stdout.readline().strip()

    def ask(self, verb, place=""):
        self.begin(verb, place)
        return self.answer()

    def kill(self):
        self.process.kill()
        self.process.wait()


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def ended():
    """Return a process of this machine that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return Process(machine(), done.pid, 1)


def leave_lock(folder, process, beat=0.03, token="0123456789abcdef"):
    """Leave the lock of a process in a folder."""
    folder.mkdir(exist_ok=True)
    holder = Holder(token, "run", "node7", "ada", process, "2026-01-02T03:04:05+00:00", beat)
    (folder / LOCK).write_bytes(holder.to_bytes() + b"000000000000\n")
    return holder


def steal(folder):
    """Take a lock over as a process does that took this one for dead."""
    return leave_lock(folder, Process("another machine", 77, 1), token="f" * 16)
