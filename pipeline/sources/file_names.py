"""What the names of files and folders say: images, splits, labels; and the patterns of names.

Names of files are bytes: they need not be valid UTF-8. They sort by their bytes, part of the path
by part, which for valid names is the order of Python's text. A name is cut into words at everything
that is no letter, and where a capital follows a small letter: `seg_train`, `train2017`,
`TrainImages` and `test1` all hold a word for a split.
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from braceexpand import alphabet, braceexpand

from pipeline.core.errors import ConfigError, SourceError
from pipeline.core.paths import is_url, shown
from pipeline.storage.folders import is_folder, list_folder, matching

# of files that `decoding` reads; what one holds is known by its content
IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo",
    ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", ".avifs",
    ".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c",
    ".qoi", ".sgi", ".ras",
)  # fmt: skip
_USUAL = (".png", ".jpg", ".tif", ".webp")

# words for splits in the names of archives, tables and arrays; those of folders say more
SPLIT_WORDS = (
    "training", "train", "testing", "test", "validation", "valid", "val", "dev", "eval",
)  # fmt: skip
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "testset"), "test"),
    **dict.fromkeys(
        ("val", "valid", "validation", "valset", "validset", "dev", "devel", "eval", "evaluation"),
        "val",
    ),
}
# the name of a folder that holds images, whatever they show
_PLAIN = (
    "image images img imgs pic pics picture pictures photo photos jpg jpeg jpegs jpegimages "
    "png data dataset set file files frame frames mask masks label labels annotation "
    "annotations"
)
_PLAIN_WORDS = frozenset(_PLAIN.split())
_PART_WORDS = ("part", "shard", "chunk", "batch", "volume", "vol", "archive", "backup", "copy")
_LABEL = (
    "label labels labeled labelled labeling annotation annotations annot annots metadata meta "
    "class classes groundtruth truth gt target targets instances caption captions attr "
    "attributes identity bbox bboxes boxes"
)
_LABEL_WORDS = frozenset(_LABEL.split())
_REMARKS = frozenset(
    ("readme", "license", "licence", "notice", "changelog", "credits", "requirements", "about")
)
# a table beside images is one of labels by its suffix alone; a text needs a word for it
_TEXT_TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson")
READ_TABLES = (*_TEXT_TABLES, ".parquet")  # as lists of images
_TABLES = (*READ_TABLES, ".xlsx", ".xls", ".mat", ".feather")
_TEXTS = (".txt", ".json", ".xml", ".lst", ".pkl", ".yml", ".yaml")
_SIDECARS = (".txt", ".json", ".xml", ".cls", ".mat", ".csv")

SPLITS, UNCLEAR, NO_SPLITS = "splits", "unclear", "no splits"

_DIGITS = re.compile(rb"\d+")
_SYNSET = re.compile(rb"n\d{8}")  # how ImageNet names its classes
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\WA-Za-z]+")
_IN_NAME = re.compile(rf"(?:^|[-_./])({'|'.join(SPLIT_WORDS)})(?=\d*(?:[-_./]|$))", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
# as braceexpand reads them
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?$")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?$")
_COUNT = re.compile(r"\0(\d+)\0")
_MOST_NAMES = 1_000_000
_MOST_BRACES = 100


def as_text(name: bytes) -> str:
    """Return a name as text that can be stored; bytes that are no UTF-8 are spelled out."""
    return name.decode("utf-8", "backslashreplace")


def suffix_of(name: bytes) -> str:
    """Return the suffix of a file's name in lower case, such as `.png`; empty where it has none."""
    _, dot, suffix = name.rpartition(b"/")[2].lstrip(b".").rpartition(b".")
    return f".{as_text(suffix).lower()}" if dot else ""


def is_image(name: bytes) -> bool:
    """Tell by the suffix whether a file is an image."""
    return suffix_of(name) in IMAGE_SUFFIXES


def image_files() -> str:
    """Return which files are images, in words: their suffixes are too many for a message."""
    usual = ", ".join(_USUAL)
    return f"files ending in {usual} or another of {len(IMAGE_SUFFIXES)} suffixes of images"


def is_hidden(name: bytes) -> bool:
    """Tell whether one part of a path is hidden, or what macOS leaves in archives."""
    return name.startswith(b".") or name == b"__MACOSX"


# splits and classes ------------------------------------------------------------------------------


def words_of(name: bytes) -> list[str]:
    """Return the words of a name in lower case.

    Examples
    --------
    >>> words_of(b"TrainImages"), words_of(b"seg_train"), words_of(b"val2017"), words_of(b"X-TEST")
    (['train', 'images'], ['seg', 'train'], ['val'], ['x', 'test'])
    """
    parts = _WORD.findall(as_text(name))
    return [word.lower() for part in parts for word in _CAMEL.findall(part)]


def splits_in(name: bytes) -> set[str]:
    """Return what the words for splits in a name stand for: `train`, `test`, `val`."""
    return {SPLIT_OF_WORD[word] for word in words_of(name) if word in SPLIT_OF_WORD}


def split_word(text: str) -> str | None:
    """Return which of `train`, `val` and `test` a name of a split or folder speaks of.

    Examples
    --------
    >>> split_word("seg_train"), split_word("PublicTest"), split_word("Validation"), split_word("x")
    ('train', 'test', 'val', None)
    """
    splits = splits_in(text.encode("utf-8", "surrogateescape"))
    return splits.pop() if len(splits) == 1 else None


def split_of(name: str) -> str | None:
    """Return the split that the name of a file speaks of, as it is spelled, in lower case.

    Examples
    --------
    >>> split_of("train-00000-of-00001.parquet"), split_of("imagenet_val.tar"), split_of("a.tar")
    ('train', 'val', None)
    """
    match = _IN_NAME.search(name.rpartition("/")[2])
    return match[1].lower() if match else None


def is_plain(name: bytes) -> bool:
    """Tell whether a name says only that there are images, such as `images` or `img_data2`."""
    words = words_of(name)
    return bool(words) and _PLAIN_WORDS.issuperset(words)


def is_container(name: bytes) -> bool:
    """Tell whether a name has words for splits and images alone, so that it is no class."""
    words = words_of(name)
    known = [word in SPLIT_OF_WORD or word in _PLAIN_WORDS for word in words]
    return any(known) and all(k or len(w) == 1 for k, w in zip(known, words, strict=True))


def judge(names: Sequence[bytes]) -> str:
    """Tell whether folders side by side are splits, by their names.

    They are where more than half have a word for a split. Where one word comes with several
    others (`cat_train`, `dog_train`, `cat_test`) it is unclear; where it is the only one and never
    stands alone (`steam train`, `bullet train`) they are no splits.
    """
    rests: dict[str, set[str]] = {}
    count = 0
    for name in names:
        split = "-".join(sorted(splits_in(name)))
        if split:
            count += 1
            rests.setdefault(split, set()).add(_rest(name))
    if 2 * count <= len(names):
        return NO_SPLITS
    if all(len(several) == 1 for several in rests.values()):
        return SPLITS
    return NO_SPLITS if len(rests) == 1 and "" not in next(iter(rests.values())) else UNCLEAR


def _rest(name: bytes) -> str:
    """Return what a name says besides splits and images."""
    return " ".join(w for w in words_of(name) if w not in SPLIT_OF_WORD and w not in _PLAIN_WORDS)


def are_classes(names: Sequence[bytes], numbers: bool) -> bool:
    """Tell whether folders or archives side by side, without folders inside, may be a class each.

    They are several, of names that differ by more than numbers, and have no words for splits, parts
    or images alone. `numbers` says that numbers alone are names of classes, and not of parts.

    Examples
    --------
    >>> are_classes([b"cat", b"dog"], False), are_classes([b"part-1", b"part-2"], True)
    (True, False)
    >>> are_classes([b"0", b"1"], True), are_classes([b"n01440764", b"n01443537"], False)
    (True, True)
    """
    bases = [name.rpartition(b"/")[2] for name in names]
    words = {word for base in bases for word in words_of(base)}
    if len(names) < 2 or any(map(is_container, bases)) or words & {*SPLIT_OF_WORD, *_PART_WORDS}:
        return False
    kept = [(numbers and b.isdigit()) or _SYNSET.fullmatch(b) is not None for b in bases]
    stems = {n if k else _DIGITS.sub(b"", n) for n, k in zip(names, kept, strict=True)}
    return len(stems) == len(names)


# files of labels ---------------------------------------------------------------------------------


def table_suffix(path: bytes) -> str:
    """Return the suffix of a file; of a table of text that is packed, such as `a.csv.gz`, its own.

    Examples
    --------
    >>> table_suffix(b"a/b.CSV.gz"), table_suffix(b"a.tar.gz"), table_suffix(b"a.parquet")
    ('.csv', '.gz', '.parquet')
    """
    unpacked = suffix_of(path.lower().removesuffix(b".gz"))
    return unpacked if unpacked in _TEXT_TABLES else suffix_of(path)


def _speaks_of_labels(words: set[str]) -> bool:
    return not words.isdisjoint(_LABEL_WORDS) or not words.isdisjoint(SPLIT_OF_WORD)


def may_be_labels(path: bytes) -> bool:
    """Tell whether a file that is no image may hold the labels of images beside it."""
    base = path.rpartition(b"/")[2]
    suffix = table_suffix(base)
    words = set(words_of(base.rpartition(b".")[0]))
    if "submission" in words or not words.isdisjoint(_REMARKS):
        return False
    return suffix in _TABLES or (suffix in _TEXTS and _speaks_of_labels(words))


def may_be_sidecar(path: bytes) -> bool:
    """Tell whether a file may say something of one image."""
    base = path.rpartition(b"/")[2]
    return suffix_of(base) in _SIDECARS and _REMARKS.isdisjoint(words_of(base))


def by_likelihood(paths: Iterable[bytes]) -> list[bytes]:
    """Return files that may hold labels, the likeliest first."""

    def rank(path: bytes) -> tuple[bool, int, int, bytes]:
        base = path.rpartition(b"/")[2]
        suffix, known = table_suffix(base), [*_TABLES, *_TEXTS]
        order = known.index(suffix) if suffix in known else len(known)
        return not _speaks_of_labels(set(words_of(base))), order, path.count(b"/"), path

    return sorted(paths, key=rank)


# paths -------------------------------------------------------------------------------------------


def files_in(
    paths: Mapping[str | None, Sequence[Path]], suffixes: Sequence[str]
) -> dict[str | None, tuple[Path, ...]]:
    """Return the paths of each split, folders replaced by their files of some suffixes, sorted."""
    return {
        split: tuple(file for path in several for file in _files_of(path, suffixes))
        for split, several in paths.items()
    }


def _files_of(path: Path, suffixes: Sequence[str]) -> list[Path]:
    # what has the suffix is not asked for: there may be very many
    if path.name.lower().endswith(tuple(suffixes)) or not is_folder(path):
        return [path]
    names = [name for name in list_folder(path) if name.lower().endswith(tuple(suffixes))]
    if not names:
        raise SourceError(f"{shown(path)}: has no file ending in {', '.join(suffixes)}")
    return [path / name for name in names if not is_hidden(os.fsencode(name))]


def flattened(
    paths: Mapping[str | None, Sequence[Path]], split: str, suffixes: Sequence[str] = ()
) -> Iterator[tuple[str, bool, Path]]:
    """Yield for each path its split, whether that was given, and the path.

    Where no split was given (the key is None), the name of the path tells it, else it is `split`.
    Folders are replaced by their files of some suffixes, where there are any.
    """
    for given, several in (files_in(paths, suffixes) if suffixes else paths).items():
        for path in several:
            yield (given, True, path) if given else (split_of(path.name) or split, False, path)


def expand(text: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """Return the paths that a pattern names: braces, then `*`, `?` and `[…]`.

    Braces hold alternatives (`{train,test}`) or ranges (`{0000..0147}`), and all that they name
    are returned in order, whether there or not. What `*`, `?` and `[…]` match is sorted as text.
    A local path of exactly this name comes first.

    Parameters
    ----------
    text
        A path or a URL.
    options
        fsspec's storage options for a URL.

    Raises
    ------
    ConfigError
        Where the braces name more than a million paths.
    SourceError
        Where nothing matches.

    Examples
    --------
    >>> expand("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    if not is_url(text) and os.path.lexists(text):
        return [text]
    return [path for name in _expanded(text) for path in _matches(name, options)]


def folder_of(pattern: str) -> str:
    """Return the folder that a pattern begins with, or that a file lies in.

    Examples
    --------
    >>> folder_of("photos/*/*.jpg"), folder_of("s3://b/a-{1,2}/x.png"), folder_of("*.png")
    ('photos', 's3://b', '.')
    """
    parts = itertools.takewhile(lambda part: not set(part) & set("*?[{"), pattern.split("/")[:-1])
    return "/".join(parts) or ("/" if pattern.startswith("/") else ".")


def _expanded(text: str) -> list[str]:
    """Return what the braces of a pattern stand for, as bash has it; unbalanced ones are letters.

    They are counted before any name is made: a range may be of very many numbers.

    Raises
    ------
    ConfigError
        Where they stand for too many names.
    """
    if text.count("{") > _MOST_BRACES:
        raise ConfigError(f"{shown(text)} has more than {_MOST_BRACES} braces; give a folder")
    with suppress(ValueError):  # a number of thousands of digits
        if _count_names(text) <= _MOST_NAMES:
            try:
                return list(braceexpand(text, escape=False))
            except ValueError:  # braces without a partner
                return [text]
    raise ConfigError(f"{shown(text)} names more than {_MOST_NAMES:,} paths; give a folder")


def _count_names(text: str) -> int:
    """Return how many names a pattern stands for: the innermost braces become their numbers."""

    def product(part: str) -> int:
        return math.prod(int(count) for count in _COUNT.findall(part))

    def count(braces: re.Match[str]) -> str:
        if numbers := _NUMBERS.match(braces[1]):
            first, last, step = (int(number or 1) for number in numbers.groups())
            names = abs(last - first) // (step or 1) + 1
        elif _LETTERS.match(braces[1]):
            names = len(alphabet)
        else:
            names = sum(map(product, braces[1].split(",")))
        return f"\0{names}\0"

    text, before = text.replace("\0", ""), ""
    while text != before:
        text, before = _BRACES.sub(count, text), text
    return product(text)


def _matches(text: str, options: Mapping[str, Any] | None) -> list[str]:
    is_query = text.startswith(("http://", "https://"))  # whose "?" begins a query
    if not set(text.partition("?")[0] if is_query else text) & set("*?["):
        return [text]
    # pathlib would not keep the text as it was given
    paths = matching(text, options) if is_url(text) else glob.glob(text, recursive=True)  # noqa: PTH207
    if not paths:
        raise SourceError(f"{shown(text)}: nothing matches this pattern; correct it")
    return sorted(paths)
