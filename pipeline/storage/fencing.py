"""Tokens that let tasks write into a folder, as long as one command fills it.

A task may come late: a worker that was thought dead wakes up, dask runs a task twice, a cluster
starts an array job again. By then the folder may be finished, or be filled by another plan, and
what the task writes takes the place of what a manifest vouches for: its shard with bad samples
that of a store without them. Locks do not keep it away, since a task holds none.

So the command that fills a folder issues a token before its tasks begin, a small file that names
the plan and the stage, and revokes it once the last has ended. Every task requires it before it
begins, and again right before it writes, which costs one small read each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import StoreError
from pipeline.core.urls import shown
from pipeline.storage.atomic import read_json, write_json
from pipeline.storage.folders import remove_file

NAME = "token.json"


@dataclass(frozen=True)
class Token:
    """What lets the tasks of one stage of a plan write; small enough to travel in each of them.

    Attributes
    ----------
    folder
        Where the command that fills a folder keeps what it works with.
    identity
        Of the plan.
    stage
        What the tasks do.
    """

    folder: Path
    identity: str
    stage: str

    @property
    def _content(self) -> dict[str, str]:
        return {"identity": self.identity, "stage": self.stage}

    def issue(self) -> None:
        """Let tasks write from now on; those of any other stage or plan no longer may."""
        write_json(self.folder / NAME, self._content)

    def revoke(self) -> None:
        """Let no task write any more."""
        remove_file(self.folder / NAME)

    @contextmanager
    def issued(self) -> Iterator[None]:
        """Let tasks write for a while."""
        self.issue()
        yield
        self.revoke()

    def require(self) -> None:
        """Make sure that this stage of this plan may write.

        Raises
        ------
        StoreError
            Where it is over, or never began.
        """
        try:
            found = read_json(self.folder / NAME)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            found = None
        if found != self._content:
            raise StoreError(
                f"{shown(self.folder.parent)}: holds no array or table that this task may write "
                f"('{self.stage}'): it is finished by now, or filled by another command; nothing "
                "was written, begin with that command's first step where it is not finished"
            )
