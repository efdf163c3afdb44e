"""What the names of folders and files say: words for splits, words for images, tables of labels.

A name is cut into words at everything that is no letter, and where a capital follows a small
letter: `seg_train`, `train2017`, `TrainImages` and `test1` all hold a word for a split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.sources.file_names import as_text, suffix_of

# word -> what it stands for
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
    "image images img imgs pic pics picture pictures photo photos jpg jpeg jpegs jpegimages png "
    "data dataset set file files frame frames mask masks label labels annotation annotations"
)
_PLAIN_WORDS = frozenset(_PLAIN.split())
_LABELS = (
    "label labels labeled labelled labeling annotation annotations annot annots metadata meta "
    "class classes groundtruth truth gt target targets instances caption captions attr attributes "
    "identity bbox bboxes boxes"
)
_LABEL_WORDS = frozenset(_LABELS.split())
# a table beside images is one of labels by its suffix alone; a text needs a word for it
_TEXT_TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson")
READ_TABLES = (*_TEXT_TABLES, ".parquet")  # as lists of images
_TABLES = (*READ_TABLES, ".xlsx", ".xls", ".mat", ".feather")
_TEXTS = (".txt", ".json", ".xml", ".lst", ".pkl", ".yml", ".yaml")
_SIDECARS = (".txt", ".json", ".xml", ".cls", ".mat", ".csv")
_REMARKS = frozenset(
    ("readme", "license", "licence", "notice", "changelog", "credits", "requirements", "about")
)
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\WA-Za-z]+")

SPLITS, UNCLEAR, NO_SPLITS = "splits", "unclear", "no splits"


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


def is_plain(name: bytes) -> bool:
    """Tell whether a name says only that there are images, such as `images` or `img_data2`."""
    words = words_of(name)
    return bool(words) and _PLAIN_WORDS.issuperset(words)


def is_container(name: bytes) -> bool:
    """Tell whether a name has words for splits and images alone, so that it is no class."""
    words = words_of(name)
    return any(word in SPLIT_OF_WORD or word in _PLAIN_WORDS for word in words) and all(
        word in SPLIT_OF_WORD or word in _PLAIN_WORDS or len(word) == 1 for word in words
    )


def judge(names: Sequence[bytes]) -> str:
    """Tell whether folders side by side are splits, by their names.

    They are where more than half have a word for a split. Where one word comes with several
    others (`cat_train`, `dog_train`, `cat_test`) it is unclear; where it is the only one and never
    stands alone (`steam train`, `bullet train`) they are no splits.
    """
    found = [(split, _rest(name)) for name in names for split in [_only(splits_in(name))] if split]
    if 2 * len(found) <= len(names):
        return NO_SPLITS
    rests: dict[str, set[str]] = {}
    for split, rest in found:
        rests.setdefault(split, set()).add(rest)
    if all(len(several) == 1 for several in rests.values()):
        return SPLITS
    return NO_SPLITS if len(rests) == 1 and "" not in next(iter(rests.values())) else UNCLEAR


def _only(splits: set[str]) -> str | None:
    return "-".join(sorted(splits)) or None


def _rest(name: bytes) -> str:
    """Return what a name says besides splits and images."""
    return " ".join(w for w in words_of(name) if w not in SPLIT_OF_WORD and w not in _PLAIN_WORDS)


def table_suffix(path: bytes) -> str:
    """Return the suffix of a file; of a table of text that is packed, such as `a.csv.gz`, its own.

    Examples
    --------
    >>> table_suffix(b"a/b.CSV.gz"), table_suffix(b"a.tar.gz"), table_suffix(b"a.parquet")
    ('.csv', '.gz', '.parquet')
    """
    unpacked = suffix_of(path.lower().removesuffix(b".gz"))
    return unpacked if unpacked in _TEXT_TABLES else suffix_of(path)


def may_be_labels(path: bytes) -> bool:
    """Tell whether a file that is no image may hold the labels of images beside it."""
    base = path.rpartition(b"/")[2]
    suffix = table_suffix(base)
    words = set(words_of(base.rpartition(b".")[0]))
    if "submission" in words or not words.isdisjoint(_REMARKS):
        return False
    says = not words.isdisjoint(_LABEL_WORDS) or not words.isdisjoint(SPLIT_OF_WORD)
    return suffix in _TABLES or (suffix in _TEXTS and says)


def may_be_sidecar(path: bytes) -> bool:
    """Tell whether a file may say something of one image."""
    base = path.rpartition(b"/")[2]
    return suffix_of(base) in _SIDECARS and _REMARKS.isdisjoint(words_of(base))


def by_likelihood(paths: Iterable[bytes]) -> list[bytes]:
    """Return files that may hold labels, the likeliest first."""

    def rank(path: bytes) -> tuple[bool, int, int, bytes]:
        base = path.rpartition(b"/")[2]
        suffix, words = table_suffix(base), set(words_of(base))
        known = [*_TABLES, *_TEXTS]
        place = known.index(suffix) if suffix in known else len(known)
        speaks = not words.isdisjoint(_LABEL_WORDS) or not words.isdisjoint(SPLIT_OF_WORD)
        return not speaks, place, path.count(b"/"), path

    return sorted(paths, key=rank)
