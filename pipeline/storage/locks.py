"""One writer a folder: a lock that says who holds it, and outlives no holder.

Whoever fills a folder holds its `.lock`, a small file that names the process and its machine, and
shows by a count that goes on (a beat) that it still runs. The next one who wants it

- is refused where the holder lives: its process runs on the same machine, or its beat goes on;
- takes over where the holder is dead: its process is gone from the same machine (or its number is
  that of another process by now), or, on another machine, where the beat did not move for six
  times its pause, watched with the own clock. Clocks of two machines are never compared.

Taking over is a race that exactly one wins. A lock that follows another is first made beside it,
under the name `.lock.TOKEN` with the token of the one before it: a file is made by one process
only (`link` of the system, safe on network file systems too; the conditional writes of object
stores). The last of such a chain is the holder, and nobody else may then replace `.lock`. Giving a
lock back is the same move. So no process ever removes a lock on the word of what it read before.

Where the store behind a URL has no conditional writes, a lock is written, waited for, and read
back: of two that come in the same second the last one wins, and the other sees that; if one of them
was suspended for longer than that, both go on until the next heartbeat.

A process that was suspended, or cut off from the storage, for longer than its lock lasted sees at
its next heartbeat, and before it finishes a folder, that the lock is another's, and stops. What
both wrote until then is the same: complete files, of equal bytes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import InUseError, printable
from pipeline.core.paths import is_remote, shown
from pipeline.storage.atomic import require_writable
from pipeline.storage.folders import list_folder
from pipeline.storage.lock_files import (
    LOCK,
    Holder,
    Slots,
    holder_of,
    new_holder,
    note_of,
    slots_of,
    token_of,
)

BEAT_SECONDS = 10.0
REMOTE_BEAT_SECONDS = 20.0
BEATS_MISSED = 6
_MOST_TRIES = 1000
_RELEASE_TRIES = 2
_END_SECONDS = 30.0
_SHORT_WAIT_SECONDS = 0.02

Say = Callable[[str], None]


def print_nothing(message: str) -> None:
    pass


@contextmanager
def held(path: Path, what: str, say: Say = print_nothing, *, wait: bool = True) -> Iterator[Lock]:
    """Hold a folder, made where it is missing, as the only process.

    Parameters
    ----------
    path
        The folder, or its URL.
    what
        What is done with it, such as `run`.
    say
        Told of a dead holder's lock that was taken over, and of watching whether one is dead.
    wait
        Whether to watch a holder on another machine until it shows that it lives or proves dead;
        else it is taken to live.

    Raises
    ------
    StoreError
        Where it cannot be written to.
    InUseError
        Where another process holds it; or, from within, where another took it over.
    """
    require_writable(path)
    lock = _acquire(path, what, say, wait)
    try:
        yield lock
    except (KeyboardInterrupt, OSError):
        if lock.lost:
            raise lock.error() from None  # whatever failed, failed of that
        raise
    finally:
        lock.release()


def check(path: Path) -> None:
    """Make sure, before a folder is finished, that this process still holds it, if it ever did.

    Raises
    ------
    InUseError
        Where another process took it over.
    """
    for lock in _own(path):
        lock.check()


def put_away(path: Path) -> None:
    """Remove what holders before left who could not remove it, or were killed over giving it back.

    Nobody goes by these notes: the `.lock` of this process leads to none of them. Done when a
    folder is finished, since it takes a listing.
    """
    for lock in _own(path):
        lock.put_away()


def any_lost() -> bool:
    """Tell whether another process was seen to have taken over a folder that this one fills.

    Asks no storage; what runs looks here often, and stops.
    """
    return any(lock.lost and lock.process == os.getpid() for lock in list(_held.values()))


_held: dict[str, Lock] = {}


def _key(path: Path) -> str:
    return str(path) if is_remote(path) else str(path.absolute())


def _own(path: Path) -> list[Lock]:
    """Return the lock by which this process holds a folder, where it does."""
    lock = _held.get(_key(path))
    return [lock] if lock is not None and lock.process == os.getpid() else []


@dataclass
class Lock:
    """A folder that this process holds; see `held`."""

    path: Path
    holder: Holder
    _slots: Slots = field(repr=False)
    process: int = field(default_factory=os.getpid)  # a fork of it does not hold the folder

    def __post_init__(self) -> None:
        self._done = threading.Event()
        self._lost, self._count = False, 0
        self._heart = threading.Thread(target=self._beat_on, name="pixsim-lock", daemon=True)
        _held[_key(self.path)] = self
        self._heart.start()

    def _beat_on(self) -> None:
        while not self._done.wait(self.holder.beat):
            self._count += 1
            # storage that fails for a while is no reason to stop: the lock may outlast it
            with suppress(Exception):
                if not self._slots.beat(self.holder.token, self._count):
                    self._lost = True
                    return

    def put_away(self) -> None:
        """Remove notes of others; see the function of this name."""
        for name in list_folder(self.path):
            token = note_of(name)
            if token and token != self.holder.token:
                self._slots.remove(name)

    @property
    def lost(self) -> bool:
        """Whether another process was seen to have taken it over; asks no storage."""
        return self._lost

    def check(self) -> None:
        """Make sure that it is still held; see the function of this name."""
        last = _chain(self._slots)[-1:]
        if self._lost or not last or last[0].token != self.holder.token:
            self._lost = True
            raise self.error()

    def error(self) -> InUseError:
        """Return what is raised where another process took it over."""
        last = _chain(self._slots)[-1:]
        taker = f"by {last[0]}" if last else "by another process, which has ended"
        return InUseError(
            f"{shown(self.path)}: was taken over {taker}, while this process was suspended or cut "
            "off from it; it is left to that one, run the same command again when it has ended"
        )

    def release(self) -> None:
        """Give it back, unless it is another's by now."""
        if self.process != os.getpid():
            return
        self._done.set()
        _held.pop(_key(self.path), None)
        self._heart.join(_END_SECONDS)
        leaving = new_holder(self.holder.what, self.holder.beat, leaves=True)
        mine = _after(self.holder)
        try:
            if not self._slots.create(mine, leaving.to_bytes()):
                return
        except OSError:
            pass  # the disk may be full
        # what is not given back is taken over when this process has ended, and not before
        for _ in range(_RELEASE_TRIES):
            with suppress(OSError):
                self._remove(mine)
                return

    def _remove(self, mine: str) -> None:
        """Remove its files, the one last that says that it is given back."""
        now = self._slots.read(LOCK)
        if now is not None and token_of(now) == self.holder.token:
            self._slots.remove(LOCK)
        if self._count:
            self._slots.drop(self.holder.token)
        self._slots.remove(mine)


def _after(holder: Holder) -> str:
    """Return the name under which a lock follows another."""
    return f"{LOCK}.{holder.token}"


def _chain(slots: Slots) -> list[Holder]:
    """Return who held the lock one after the other, the last one being who holds it now."""
    holders: list[Holder] = []
    name = LOCK
    # no process makes it longer than a few
    while len(holders) < _MOST_TRIES and (data := slots.read(name)) is not None:
        holders.append(holder_of(data))
        name = _after(holders[-1])
    return holders


def _acquire(path: Path, what: str, say: Say, wait: bool) -> Lock:
    slots = slots_of(path)
    me = new_holder(what, REMOTE_BEAT_SECONDS if is_remote(path) else BEAT_SECONDS)
    try:
        return _take(path, slots, me, say, wait)
    except InUseError:
        raise
    except BaseException:
        _withdraw(slots, me)
        raise


def _withdraw(slots: Slots, me: Holder) -> None:
    """Remove the lock that this process made before something failed, else it is in its own way."""
    with suppress(OSError):
        chain = _chain(slots)
        if chain and chain[-1].token == me.token:
            slots.remove(LOCK if len(chain) == 1 else _after(chain[-2]))


def _take(path: Path, slots: Slots, me: Holder, say: Say, wait: bool) -> Lock:
    for _ in range(_MOST_TRIES):
        if slots.create(LOCK, me.to_bytes()):
            return Lock(path, me, slots)
        chain = _chain(slots)
        if not chain or not _is_dead(path, slots, chain[-1], say, wait):
            time.sleep(_SHORT_WAIT_SECONDS)  # it is being given back
            continue
        if _follow(slots, chain, me):
            if not chain[-1].leaves:
                say(f"took over the lock of {chain[-1]}, which is gone")
            return Lock(path, me, slots)
    raise InUseError(
        f"{shown(path)}: its {LOCK} changes hands without end; run the same command again"
    )


def _follow(slots: Slots, chain: list[Holder], me: Holder) -> bool:
    """Take the place of the last of a chain, which is dead; tell whether no other was faster."""
    mine = _after(chain[-1])
    if not slots.create(mine, me.to_bytes()):
        return False
    now = _chain(slots)
    if not now or now[-1].token != me.token:
        slots.remove(mine)  # the one before was followed, and put away, before
        return False
    slots.move(mine, LOCK)
    for before in chain:
        slots.drop(before.token)
    for before in chain[:-1]:
        slots.remove(_after(before))
    return True


def _is_dead(path: Path, slots: Slots, holder: Holder, say: Say, wait: bool) -> bool:
    """Tell whether a holder is dead; False where it gave the lock back meanwhile.

    Raises
    ------
    InUseError
        Where it lives, or may live and is not to be waited for.
    """
    lives = holder.process.lives
    if lives is None and wait:
        lives = _beats(path, slots, holder, say)
    if lives is False:
        return True
    last = _chain(slots)[-1:]
    if not last or last[0].token != holder.token or (holder.leaves and lives):
        return False
    raise InUseError(
        f"{shown(path)}: is in use by {holder} ({printable(holder.what)}, since "
        f"{printable(holder.since)}, for {holder.age}); wait until it has ended, or end it, and "
        "run the same command again"
    )


def _beats(path: Path, slots: Slots, holder: Holder, say: Say) -> bool:
    """Watch a holder on another machine; tell whether it lives."""
    pause = holder.beat or (REMOTE_BEAT_SECONDS if is_remote(path) else BEAT_SECONDS)
    limit = BEATS_MISSED * pause
    say(f"{shown(path)} is locked by {holder}; watching for up to {limit:.0f} s whether it lives")
    before, start = slots.pulse(holder.token), time.monotonic()
    while time.monotonic() - start < limit:
        time.sleep(pause / 5)
        if slots.pulse(holder.token) != before:
            return True
    return False


def is_lock(name: str) -> bool:
    """Tell whether a file in a folder is its lock, or belongs to it."""
    return name == LOCK or name.startswith(f"{LOCK}.")
