"""Which libraries decode the image files of a job: recorded with their versions, and required.

JPEG is decoded by the libjpeg-turbo of imagecodecs, or by Pillow's where a file is unusual; they
give the same bits today, and nobody promises that of every version. So names and versions are
recorded in the provenance of a store; a resume needs what is recorded, and a task that has
something else fails.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import imagecodecs
import PIL
from PIL import features

from pipeline.core.errors import ConfigError
from pipeline.storage.manifest import DECODERS

IMAGECODECS, PILLOW = "imagecodecs", "Pillow"


@dataclass(frozen=True)
class Decoders:
    """The libraries that decode image files, each with its version.

    Attributes
    ----------
    jpeg
        That of JPEG.
    other
        That of all other formats, and of unusual JPEG.
    """

    jpeg: str
    other: str

    def describe(self) -> dict[str, str]:
        """Return them as plain JSON."""
        return {"jpeg": self.jpeg, "other": self.other}

    def __str__(self) -> str:
        return self.jpeg if self.jpeg.startswith(self.other) else f"{self.jpeg} and {self.other}"

    def require(self) -> None:
        """Raise `ConfigError` where this process does not have them."""
        here = by_pillow() if self.jpeg.startswith(PILLOW) else installed()
        if here != self:
            raise ConfigError(
                f"images are decoded by {self}, as this ingest was begun; {platform.node()} has "
                f"{here}; install there what it was begun with, or remove the unfinished store "
                "and begin it anew"
            )


@cache
def installed() -> Decoders:
    """Return what this process decodes image files with."""
    turbo = imagecodecs.jpeg8_version().removeprefix("libjpeg_turbo ").partition("/")[0]
    jpeg = f"{IMAGECODECS} {imagecodecs.__version__} (libjpeg-turbo {turbo})"
    return Decoders(jpeg, by_pillow().other)


def by_pillow() -> Decoders:
    """Return the decoders of files that another library opens, and leaves to Pillow."""
    name, turbo = f"{PILLOW} {PIL.__version__}", features.version("libjpeg_turbo")
    return Decoders(f"{name} (libjpeg-turbo {turbo})" if turbo else name, name)


def recorded(provenance: Mapping[str, Any]) -> Decoders | None:
    """Return what the provenance of a store names; None where an older version made it."""
    names = provenance.get(DECODERS)
    return None if names is None else Decoders(str(names["jpeg"]), str(names["other"]))


def to_resume(provenance: Mapping[str, Any]) -> Decoders | None:
    """Return what must decode the rest of a store that was begun.

    None where that is not recorded, or was Pillow or torchvision, which older versions of pixsim
    decoded JPEG with: it is resumed all the same, and its provenance names no decoder then. What
    torchvision opens, Pillow decodes in every version.
    """
    decoders = recorded(provenance)
    if provenance.get("kind") == "torchvision":
        return decoders
    return decoders if decoders and decoders.jpeg.startswith(IMAGECODECS) else None


def difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a remark where two provenances name other decoders, else an empty text."""
    before, after = recorded(was), recorded(now)
    if before is None or after is None or before == after:
        return ""
    return f" (decoded by {before} then, by {after} now)"
