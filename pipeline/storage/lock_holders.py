"""Who holds a lock, as its file says."""

from __future__ import annotations

import getpass
import json
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pipeline.core.errors import printable
from pipeline.storage.lock_files import token_of
from pipeline.storage.processes import Process, this_process

_LONGEST_BEAT = 600.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says.

    Attributes
    ----------
    token
        Of this one holding; no two are equal.
    what
        What the process does with the folder.
    host, user, process
        Who it is.
    since
        When it began, in UTC, by its own clock.
    beat
        Seconds between two beats.
    leaves
        Whether it is just giving the lock back.
    """

    token: str
    what: str
    host: str
    user: str
    process: Process
    since: str
    beat: float
    leaves: bool = False

    def __str__(self) -> str:
        return printable(f"process {self.process.number} of {self.user} on {self.host}")

    @property
    def age(self) -> str:
        """How long it holds, as far as the clocks of its machine and this one agree."""
        try:
            seconds = (datetime.now(UTC) - datetime.fromisoformat(self.since)).total_seconds()
        except (ValueError, TypeError):
            return "an unknown time"
        for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
            if seconds >= 2 * size:
                return f"{seconds // size:.0f} {unit}"
        return f"{max(int(seconds), 0)} s"

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def holder_of(data: bytes) -> Holder:
    """Return who wrote a lock; an unknown one where it cannot be read."""
    token = token_of(data)
    try:
        content = json.loads(data.partition(b"\n")[0])
        process = Process(**content["process"])
        found = Holder(**content | {"process": process})
        texts = (found.what, found.host, found.user, found.since, process.machine)
        plain = all(isinstance(text, str) for text in texts) and found.token == token
        if (
            plain
            and _are_whole(process.number, process.started)
            and 0 < found.beat <= _LONGEST_BEAT
        ):
            return found
    except (ValueError, TypeError, KeyError):
        pass
    return Holder(token, "unknown", "an unknown host", "unknown", Process("", 0, 0), "", 0.0)


def _are_whole(*numbers: object) -> bool:
    return all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers)


def new_holder(what: str, beat: float, leaves: bool = False) -> Holder:
    """Return this process as a holder."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"  # a container may know none
    since = datetime.now(UTC).isoformat(timespec="seconds")
    token = secrets.token_hex(8)
    return Holder(token, what, socket.gethostname(), user, this_process(), since, beat, leaves)
