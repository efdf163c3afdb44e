"""Which libraries decode the image files of a job: chosen once, when the job is planned.

Pillow and torchvision both decode JPEG, each with a libjpeg-turbo of its own; they give the same
bits today, and nobody promises that. So it is one of them for all tasks of a job, by a rule that
does not look at what a process has imported before. Name and version are recorded in the
provenance of the store; a resume uses what is recorded, and a task that has something else fails.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import PIL
from PIL import features

from pipeline.core.errors import ConfigError
from pipeline.images.jpeg import torchvision_decoder
from pipeline.storage.manifest import DECODERS

PILLOW, TORCHVISION = "Pillow", "torchvision"

# Importing torchvision takes about as long as it saves on so many pixels.
WORTHWHILE_PIXELS = 2**30


@dataclass(frozen=True)
class Decoders:
    """The libraries that decode image files, each with its version.

    Attributes
    ----------
    jpeg
        That of JPEG. Where it is torchvision, `other` decodes what that cannot.
    other
        That of all other formats.
    """

    jpeg: str
    other: str

    @property
    def torchvision(self) -> bool:
        """Whether JPEG is decoded by torchvision."""
        return self.jpeg.startswith(TORCHVISION)

    def describe(self) -> dict[str, str]:
        """Return them as plain JSON."""
        return {"jpeg": self.jpeg, "other": self.other}

    def __str__(self) -> str:
        return f"{self.jpeg} and {self.other}" if self.torchvision else self.jpeg

    def require(self) -> None:
        """Raise `ConfigError` where this process does not have them."""
        here = installed(self.torchvision)
        if here != self:
            raise ConfigError(
                f"images are decoded by {self}, as this ingest was begun; {platform.node()} has "
                f"{here or 'no torchvision that decodes JPEG'}; install there what it was begun "
                "with, or remove the unfinished store and begin it anew"
            )


@cache
def installed(torchvision: bool) -> Decoders | None:
    """Return what this process decodes with; None where it is asked for torchvision in vain."""
    if not torchvision:
        return _pillow()
    if torchvision_decoder() is None:
        return None
    # "0.25.0+cpu" and "0.25.0+cu128" differ in what they have for GPUs
    version = metadata.version(TORCHVISION).partition("+")[0]
    return Decoders(f"{TORCHVISION} {version}", _pillow().other)


def _pillow() -> Decoders:
    name, turbo = f"{PILLOW} {PIL.__version__}", features.version("libjpeg_turbo")
    return Decoders(f"{name} (libjpeg-turbo {turbo})" if turbo else name, name)


def choose(jpeg_pixels: int, resizes: bool, like: Mapping[str, Any] | None = None) -> Decoders:
    """Choose the decoders of a job.

    Parameters
    ----------
    jpeg_pixels
        How many pixels it decodes from JPEG, about.
    resizes
        Whether it resizes, for which it loads torchvision anyway.
    like
        The provenance of images that its own belong to: what decoded those is preferred.
    """
    was = recorded(like or {})
    wanted = was.torchvision if was else resizes or jpeg_pixels >= WORTHWHILE_PIXELS
    found = installed(True) if wanted and (jpeg_pixels or was) else None
    return found or _pillow()


def recorded(provenance: Mapping[str, Any]) -> Decoders | None:
    """Return what the provenance of a store names; None where an older version made it."""
    found = provenance.get(DECODERS)
    return None if found is None else Decoders(str(found["jpeg"]), str(found["other"]))


def difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a remark where two provenances name other decoders, else an empty text."""
    before, after = recorded(was), recorded(now)
    if before is None or after is None or before == after:
        return ""
    return f" (decoded by {before} then, by {after} now)"
