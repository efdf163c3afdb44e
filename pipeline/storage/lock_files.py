"""The few files that a lock is made of, and who holds it, as its file says.

Each is made by one process only: locally it is written aside and linked to its name, which fails
where there is one, on network file systems too; in an object store it is put on the condition that
there is none.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import re
import secrets
import socket
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pipeline.core.errors import printable
from pipeline.core.paths import is_remote
from pipeline.storage.atomic import aside_of, storage_errors
from pipeline.storage.blobs import has_conditions, put_bytes, put_new, read_bytes
from pipeline.storage.folders import remove_file
from pipeline.storage.processes import Process, this_process

LOCK = ".lock"
SETTLE_SECONDS = 2.0
_COUNT = "{:012d}\n"
_TOKEN = re.compile("[0-9a-f]{16}")
_NOTE = re.compile(r"\.lock\.([0-9a-f]{16})(\.beat)?")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_LONGEST_BEAT = 600.0


def token_of(data: bytes) -> str:
    """Return the token in the first line of a lock; one made of it, where it cannot be read."""
    line = data.partition(b"\n")[0]
    with suppress(ValueError, TypeError, KeyError):
        token = str(json.loads(line)["token"])
        if _TOKEN.fullmatch(token):  # it becomes part of a name
            return token
    return hashlib.sha256(line).hexdigest()[:16]


def note_of(name: str) -> str:
    """Return the token of the lock that a file beside it belongs to, or "" where it is none."""
    match = _NOTE.fullmatch(name)
    return match[1] if match else ""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says."""

    token: str  # no two holders have equal ones
    what: str  # the process does with the folder
    host: str
    user: str
    process: Process
    since: str  # in UTC, by its own clock
    beat: float  # seconds between two heartbeats
    leaves: bool = False  # it is just giving the lock back

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
        holder = Holder(**content | {"process": process})
        texts = (holder.what, holder.host, holder.user, holder.since, process.machine)
        numbers = (process.number, process.started)
        if (
            holder.token == token
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers)
            and 0 < holder.beat <= _LONGEST_BEAT
        ):
            return holder
    except (ValueError, TypeError, KeyError):
        pass
    return Holder(token, "unknown", "an unknown host", "unknown", Process("", 0, 0), "", 0.0)


def new_holder(what: str, beat: float, leaves: bool = False) -> Holder:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"  # a container may know none
    since = datetime.now(UTC).isoformat(timespec="seconds")
    token = secrets.token_hex(8)
    return Holder(token, what, socket.gethostname(), user, this_process(), since, beat, leaves)


@dataclass
class Slots(ABC):
    """The files of the lock of one folder, by their names."""

    path: Path

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Make a file where there is none; tell whether this call made it."""

    def read(self, name: str) -> bytes | None:
        """Return the first line of a file, or None where there is none."""
        try:
            return read_bytes(self.path / name).partition(b"\n")[0]
        except FileNotFoundError:
            return None

    @abstractmethod
    def move(self, name: str, target: str) -> None:
        """Give a file another name, that of another file, which is gone then."""

    def remove(self, name: str) -> None:
        remove_file(self.path / name)

    @abstractmethod
    def beat(self, token: str, count: int) -> bool:
        """Show that the holder lives; tell whether `.lock` is still its own."""

    @abstractmethod
    def pulse(self, token: str, /) -> bytes:
        """Return what changes with every heartbeat of a holder."""

    @abstractmethod
    def drop(self, token: str) -> None:
        """Remove what heartbeats of a holder left beside its lock."""


def slots_of(path: Path) -> Slots:
    return _RemoteSlots(path) if is_remote(path) else _LocalSlots(path)


class _LocalSlots(Slots):
    """In a folder; the heartbeat is a count behind the first line, so it makes no file."""

    def create(self, name: str, data: bytes) -> bool:
        target = self.path / name
        aside = aside_of(target)
        content = data + _COUNT.format(0).encode()
        with storage_errors(target):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                aside.write_bytes(content)
                os.link(aside, target)
            except FileExistsError:
                return aside.stat().st_nlink > 1  # the answer to an earlier try may be lost
            except FileNotFoundError:
                return False  # swept away by the holder, which finishes the folder
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create_here(target, content)
            finally:
                aside.unlink(missing_ok=True)
        return True

    def move(self, name: str, target: str) -> None:
        (self.path / name).replace(self.path / target)

    def beat(self, token: str, count: int) -> bool:
        try:
            # opened once: what is counted in is what was looked at, whatever has the name by now
            number = os.open(self.path / LOCK, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            data = os.pread(number, 2**16, 0)
            if token_of(data) != token:
                return False
            os.pwrite(number, _COUNT.format(count).encode(), data.index(b"\n") + 1)
        finally:
            os.close(number)
        return True

    def pulse(self, _token: str, /) -> bytes:
        try:
            return (self.path / LOCK).read_bytes()
        except FileNotFoundError:
            return b""

    def drop(self, token: str) -> None:
        pass


def _create_here(target: Path, content: bytes) -> bool:
    """Make a file on a file system without links; for a moment it is empty."""
    try:
        number = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(number, content)
    finally:
        os.close(number)
    return True


@dataclass
class _RemoteSlots(Slots):
    """Behind a URL; the heartbeat is an object of its own, so it never overwrites a lock."""

    _knows_conditions: bool = field(default=False, repr=False)

    def create(self, name: str, data: bytes) -> bool:
        target = self.path / name
        # a store that does not know conditions would write over what is there
        if not self._knows_conditions and self.read(name) is not None:
            return self._is(name, data)
        if not has_conditions(target):
            put_bytes(target, data)
        elif not put_new(target, data):
            self._knows_conditions = True
            return self._is(name, data)  # the answer to an earlier try may be lost
        elif self._knows_conditions or not put_new(target, data):  # asked twice, it says no
            self._knows_conditions = True
            return True
        time.sleep(SETTLE_SECONDS)
        return self._is(name, data)

    def _is(self, name: str, data: bytes) -> bool:
        return self.read(name) == data.partition(b"\n")[0]

    def move(self, name: str, target: str) -> None:
        put_bytes(self.path / target, read_bytes(self.path / name).partition(b"\n")[0] + b"\n")
        self.remove(name)

    def beat(self, token: str, count: int) -> bool:
        line = self.read(LOCK)
        if line is None or token_of(line) != token:
            return False
        put_bytes(self._beat_of(token), _COUNT.format(count).encode())
        return True

    def pulse(self, token: str, /) -> bytes:
        try:
            count = read_bytes(self._beat_of(token))
        except FileNotFoundError:
            count = b""
        return (self.read(LOCK) or b"") + count

    def drop(self, token: str) -> None:
        remove_file(self._beat_of(token))

    def _beat_of(self, token: str) -> Path:
        return self.path / f"{LOCK}.{token}.beat"
