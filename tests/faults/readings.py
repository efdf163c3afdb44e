"""What readers get of a store and a run: equal digests for equal values, or that it is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pipeline
from faults.scenes import RESULT, STORE
from pipeline.core.errors import PixsimError

REFUSED = "refused"
_OF_ONE_FOLDER = ("images", "seconds", "stored_bytes")


def readings() -> dict[str, str]:
    """Read all that the public functions give of what lies in the working directory.

    Returns for each the digest of its values, or `REFUSED`, and which error it was where that is
    none of ours.
    """
    readers: dict[str, Callable[[], Any]] = {
        "description of the store": partial(_described, STORE),
        "description of the run": partial(_described, RESULT),
    }
    readers |= {f"images of {split}": partial(_images, split) for split in ("train", "test")}
    readers |= {
        name: partial(_of_run, name)
        for name in ("prototypes", "distances", "predictions", "metrics")
    }
    return {name: _read(reader) for name, reader in readers.items()}


def _read(reader: Callable[[], Any]) -> str:
    try:
        return hashlib.sha256(repr(reader()).encode()).hexdigest()
    except PixsimError:
        return REFUSED
    except Exception as error:
        return f"{REFUSED} with {type(error).__name__}"


def _described(name: str) -> Any:
    content = pipeline.describe(name)
    for part in (content, *content["splits"].values()) if name == STORE else (content,):
        for key in _OF_ONE_FOLDER:
            part.pop(key, None)
    return content


def _images(split: str) -> Any:
    opened = pipeline.open_images(STORE, split).load()
    return opened["image"].values.tobytes(), opened["label"].values.tobytes(), opened.attrs


def _of_run(name: str) -> Any:
    found = getattr(pipeline.open_run(RESULT), name)
    if name == "metrics":
        return found
    return found.compute().to_csv() if name == "predictions" else found.load().to_dict()
