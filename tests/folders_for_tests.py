"""Folders that tests of storage make, on this machine or a remote one."""

from __future__ import annotations

import uuid

from pipeline.core.paths import locate
from pipeline.storage import (
    atomic,
)


def memory():
    return locate(f"memory://tests-{uuid.uuid4().hex}")


def put(path, data=b"data"):
    with atomic.replaced(path) as aside:
        aside.write_bytes(data)
