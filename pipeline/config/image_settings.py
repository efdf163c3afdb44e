"""What a job says of its images: where they are, what they are, how they are brought to one shape.

A text stands for `{source: text}`. What opens a URL (`storage_options`) is taken in, and never
given out again: neither by `repr` nor in a dump.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    field_serializer,
    model_validator,
)

from pipeline.config.settings import Name, Names, PathText, Settings, as_bytes, one_or_many
from pipeline.core.paths import shown

KINDS = (
    "folder", "tar", "zip", "parquet", "list", "pixels", "numpy", "xarray", "torchvision",
    "catalog",
)  # fmt: skip
_ROLES = {
    "columns": ("image", "path", "label", "split"),
    "variables": ("image", "label"),
    "dims": ("sample", "y", "x", "channel"),
}
LARGEST_SIDE = 2**16
Size = tuple[int, int]


def _share(value: object) -> object:
    """Read a number of samples, or a percentage written as `1%` or `0.5 %`."""
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d+", text):
            return int(text)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
        if match is None or float(match[1]) > 100:
            raise ValueError("expected a number of samples such as 10, or a share such as 1%")
        return f"{match[1]}%"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("expected a number of samples such as 10, or a share such as 1%")


def _sides(value: object) -> object:
    """Read sides written as `64x48` (height x width) or as a list."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*(?:[xX,]\s*(\d+)\s*)?", value)
        if match is not None:
            sides = [int(side) for side in match.groups() if side is not None]
            return sides if len(sides) == 2 else sides[0]
    return value


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE


def _pair(value: object) -> Size | None:
    sides = _sides(value)
    if _is_side(sides):
        sides = [sides, sides]
    if sides is None:
        return None
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(map(_is_side, sides)):
        return (sides[0], sides[1])
    raise ValueError(f"expected [height, width], each from 1 to {LARGEST_SIDE}")


def _resize(value: object) -> int | Size | None:
    sides = _sides(value)
    if isinstance(sides, int) and _is_side(sides):
        return sides
    try:
        return _pair(None if sides is None else sides)
    except ValueError as error:
        raise ValueError(f"{error}, or the length of the shorter side") from None


def _flat_shape(value: object) -> tuple[int, ...] | None:
    """Read a shape written as `28x28`, `28x28x3` or as a list."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\s*[xX,]\s*\d+){1,2}\s*", value):
        value = [int(side) for side in re.findall(r"\d+", value)]
    if value is None:
        return None
    if isinstance(value, list | tuple) and 2 <= len(value) <= 3 and all(map(_is_side, value)):
        return tuple(value)
    raise ValueError("expected [height, width], [height, width, 3] or [3, height, width]")


def _encoding(value: str) -> str:
    try:
        known = codecs.lookup(value)
    except LookupError:
        known = None
    if known is None or not known._is_text_encoding:
        raise ValueError("expected the name of an encoding, such as utf-8, latin-1 or cp1252")
    return value


Sized = Annotated[Size | None, BeforeValidator(_pair)]
Resized = Annotated[int | Size | None, BeforeValidator(_resize)]
PathTexts = Annotated[tuple[PathText, ...], Field(min_length=1), BeforeValidator(one_or_many)]


class ImageSettings(Settings):
    """The images of a job."""

    source: PathText | None = None
    """One path: a name of the catalog, an image-set store, a folder, file, pattern or URL, or
    `torchvision:NAME`.
    """
    splits: Annotated[dict[Name, PathTexts], Field(min_length=1)] | None = None
    """Instead of `source`: for each split its path or paths."""
    kind: Literal[KINDS] | None = None  # type: ignore[valid-type]
    """How to read the path; default: what its name and content say. Where it is given, folders are
    taken as they are, however implausible.
    """
    split: Name = "train"
    """The name of the split, where the path does not tell of any."""
    store: PathText | None = None
    """Where the store of the images is made; default: `data/stores/NAME.zarr`."""
    class_names: Names | None = None
    """The classes in the order of their codes; default: what the source says, else the labels that
    occur.
    """
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Of tables: which column is the `image`, `path`, `label`, `split`; null: none is. Of the
    samples of webdataset: which member is the `image` and the `label`, such as `input.png`, `txt`
    or `json.species`; default: the usual names.
    """
    encoding: Annotated[str, AfterValidator(_encoding)] | None = None
    """Of lists of text: such as `latin-1`; default: what a mark says, else UTF-8."""
    root: PathText | None = None
    """Of lists: the folder that paths are relative to; default: that of the list, and folders for
    images in it.
    """
    variables: dict[str, str] = Field(default_factory=dict)
    """Of Zarr, NetCDF, HDF5 and `.npz`: what `image` and `label` are called (`x_{split}` for
    those of each split); default: the usual names.
    """
    dims: dict[str, str] = Field(default_factory=dict)
    """Of Zarr and NetCDF: what `sample`, `y`, `x` and `channel` are called; default: the usual
    names.
    """
    shape: Annotated[tuple[int, ...] | None, BeforeValidator(_flat_shape)] = None
    """Of pixels that lie in a row, in the columns of a table or in arrays [sample, value]:
    [height, width], or [height, width, 3] or [3, height, width] as they lie; default: of tables a
    square.
    """
    options: dict[str, Any] = Field(default_factory=dict)
    """Of torchvision: further arguments of the data set's class."""
    storage_options: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """fsspec's options for `source` and `splits`: keys, endpoints. Never written anywhere; default:
    those of the environment.
    """
    resize: Resized = None
    """[height, width] that every image is resized to; one number: the shorter side."""
    crop: Sized = None
    """[height, width] that larger images are cut to, at the centre. A crop larger than an image is
    refused, unless `pad` is given too: both together fit any.
    """
    pad: Sized = None
    """[height, width] that smaller images are filled up to, around the centre."""
    mode: Literal["L", "RGB"] | None = None
    """`L` (grey) or `RGB`: what every image is converted to."""
    depth: Literal[8, 16] | None = None
    """8 or 16: the bits that every image is converted to, the whole range to the whole range."""
    value_range: tuple[float, float] | None = None
    """Of floats: [lowest, highest] value, for packing into 16 bits; default: measured."""
    max_bad: Annotated[int | str, BeforeValidator(_share)] = 0
    """How many samples may be left out because they cannot be used: a number, or a share of all
    such as `1%`. They are listed; above it the ingest fails, at the end.
    """
    max_pixels: PositiveInt = 50_000_000
    """Of one image file: more is refused before it is read."""
    max_bytes: Annotated[PositiveInt, BeforeValidator(as_bytes)] = 2**28
    """Of one image file, such as `256 MiB`: more is refused before it is read."""
    shard: PositiveInt | None = None
    """Samples per shard; default: some MB's worth."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str | os.PathLike) else value

    @model_validator(mode="after")
    def _one_source(self) -> ImageSettings:
        if (self.source is None) == (self.splits is None):
            raise ValueError("needs a source, or splits with a place each, and not both")
        for key, roles in _ROLES.items():
            for role in getattr(self, key):
                if role not in roles:
                    raise ValueError(f"{key} has '{role}', expected some of {', '.join(roles)}")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError("value_range needs a lowest and a larger highest value")
        return self

    @field_serializer("source", "store", "root")
    def _shown(self, value: str | None) -> str | None:
        return None if value is None else shown(value)

    @field_serializer("splits")
    def _splits_shown(self, value: Mapping[str, tuple[str, ...]] | None) -> object:
        if value is None:
            return None
        return {name: [shown(path) for path in paths] for name, paths in value.items()}

    def allowed_bad(self, total: int) -> int:
        """Return how many of `total` samples may be left out."""
        if isinstance(self.max_bad, str):
            return int(total * float(self.max_bad.removesuffix("%")) / 100)
        return self.max_bad

    @property
    def title(self) -> str:
        """What to call the images in a message."""
        if self.source is not None:
            return shown(self.source)
        return ", ".join(shown(path) for paths in (self.splits or {}).values() for path in paths)
