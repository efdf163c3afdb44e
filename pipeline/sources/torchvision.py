"""Data sets that torchvision downloads, checks and, for CIFAR-10, reads."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from pipeline.errors import SourceError
from pipeline.sources.arrays import ArraySource, from_arrays

_TIMEOUT_SECONDS = 30.0
_REASON_CHARACTERS = 120
_DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError)


def download(name: str, root: Path) -> Path:
    """Download a torchvision data set below `root`, with a progress bar and checksums.

    Returns the folder that holds the files.

    Raises
    ------
    SourceError
        Where it cannot be downloaded.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)  # a silent network must not hang the job
    try:
        found = getattr(datasets, name)(root=str(root), download=True)
    except _DOWNLOAD_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        # torchvision lists every mirror that it tried; the last one's answer says it
        reason = reason[-_REASON_CHARACTERS:].partition("got: ")[2] or reason[:_REASON_CHARACTERS]
        raise SourceError(f"no download: {reason}") from None
    finally:
        socket.setdefaulttimeout(before)
    return Path(getattr(found, "raw_folder", root))


def read_cifar10(
    root: Path, class_names: tuple[str, ...], provenance: Mapping[str, Any]
) -> ArraySource:
    """Read CIFAR-10 from `root/cifar-10-batches-py`; torchvision checks each file's MD5."""
    try:
        parts = {
            split: datasets.CIFAR10(root=str(root), train=split == "train")
            for split in ("train", "test")
        }
    except (RuntimeError, OSError) as error:
        raise SourceError(f"{root}: CIFAR-10 cannot be read: {error}") from None
    arrays = {split: (part.data, np.array(part.targets)) for split, part in parts.items()}
    return from_arrays(arrays, class_names, provenance=provenance)
