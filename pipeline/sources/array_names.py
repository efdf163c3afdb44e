"""What arrays are called that hold images, labels or class names, and of which split they are.

The usual names are known, whatever their case: `x_train` and `y_train`, `train_images` and
`train_labels`, `X` and `y`, `data` and `target`, what `numpy.savez` calls arrays without names.
Names that may mean two things are refused, and so is an array that looks like labels and is left
over; any other array that is left out is reported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from pipeline.core.errors import SourceError, listed, nearest
from pipeline.sources.array_source import Stored
from pipeline.sources.file_names import SPLIT_WORDS

T = TypeVar("T")

# each word of images with those of the labels that usually go with it
_WORDS = {
    "images": ("labels",),
    "x": ("y",),
    "image": ("label",),
    "imgs": ("labels",),
    "img": ("label",),
    "data": ("target", "targets", "labels", "label"),
    "pixels": ("labels", "label"),
    "inputs": ("targets", "labels"),
}
IMAGE_WORDS = tuple(_WORDS)
LABEL_WORDS = ("labels", "label", "y", "targets", "target")
NAME_WORDS = (
    "class_names", "classes", "label_names", "target_names", "classnames", "list_classes",
)  # fmt: skip
_ANY_SPLIT = ("images", "labels")  # also with a word beside them that no split usually has
_SEPARATORS = "_-. /"
_UNNAMED = re.compile(r"arr_\d+")
_SPLIT = "{split}"
_LONGEST = 60  # characters of a name in a message
_GIVEN = "*"  # instead of the word, where the job says what an array is called
IMAGE, LABEL, NAMES = "image", "label", "names"


class Role(NamedTuple):
    """What the name of an array says: what it is, of which split, and the word that says so.

    The split is empty where the name tells of none; `sure` is false where only a second array of
    the same split shows that the rest of the name is a split.
    """

    kind: str
    split: str
    word: str
    sure: bool = True


Headers = Mapping[str, Stored | None]  # None where a header cannot be read


def role_of(name: str, variables: Mapping[str, str] | None = None) -> Role | None:
    """Return what the name of an array, or the stem of its file, says; None where that is nothing.

    `variables` say what `image` and `label` are called, if not as usual; `{split}` in them stands
    for any split.

    Examples
    --------
    >>> role_of("X_train")
    Role(kind='image', split='train', word='x', sure=True)
    """
    given = variables or {}
    for kind, pattern in given.items():
        match = re.fullmatch(re.escape(pattern).replace(re.escape(_SPLIT), "(.+)"), name)
        if match:
            return Role(kind, "".join(match.groups()), _GIVEN)
    low = name.lower()
    if low in NAME_WORDS:
        return Role(NAMES, "", low)
    for kind, words in ((LABEL, LABEL_WORDS), (IMAGE, IMAGE_WORDS)):
        for word in words if kind not in given else ():
            rest = _rest(low, name, word)
            if rest is not None:
                split = _split_in(rest)
                sure = not rest or split is not None or word in _ANY_SPLIT
                # a path that leads out is no group of HDF5, and refused as the name of a split
                groups = rest if rest.startswith(("/", ".")) else rest.replace("/", "_")
                return Role(kind, split or groups, word, sure)
    split = _split_in(low)
    return Role(IMAGE, split, "") if split and IMAGE not in given else None


def _rest(low: str, name: str, word: str) -> str | None:
    """Return what else a name says that begins or ends with a word; None where it does not."""
    if low == word:
        return ""
    before, after = name[: -len(word)], name[len(word) :]
    if low.startswith(word) and (after[0] in _SEPARATORS or _split_in(after)):
        return after.lstrip(_SEPARATORS)
    if low.endswith(word) and (before[-1] in _SEPARATORS or _split_in(before)):
        return before.rstrip(_SEPARATORS)
    return None


def _split_in(name: str) -> str | None:
    """Return the split that a name stands for: `test` for the `t10k` of MNIST."""
    low = name.lower().removesuffix("_set")
    return low if low in SPLIT_WORDS else {"t10k": "test"}.get(low)


def belongs(image: Role, label: Role) -> bool:
    """Tell whether labels are called as those usually are that go with images so called."""
    return label.word in (*_WORDS.get(image.word, ()), _GIVEN) or image.word == _GIVEN


def label_spellings(name: str) -> list[str]:
    """Return what the labels may be called that belong to images of this name."""
    role = role_of(name)
    if role is None or role.kind != IMAGE or not role.word:
        return [name.replace("images", "labels")] if "images" in name else []
    at = name.lower().find(role.word)
    before, after = name[:at], name[at + len(role.word) :]
    words = [w for word in _WORDS[role.word] for w in (word, word.upper(), word.capitalize())]
    return list(dict.fromkeys(before + word + after for word in words))


# choosing ----------------------------------------------------------------------------------------


@dataclass
class Choice:
    """Which arrays are images and which labels.

    `pairs` are for each split the names of its images and of its labels, None where there are
    none; `names` is the array of class names, `left_out` are the other arrays.
    """

    pairs: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    names: str | None = None
    left_out: list[str] = field(default_factory=list)


def choose(
    title: str,
    arrays: Headers,
    default: str,
    variables: Mapping[str, str] | None = None,
    others: Sequence[str] = (),
) -> Choice:
    """Find the images and labels of all splits among the arrays of one archive.

    `title` is its name for messages; `default` the split of names that tell of none; `variables`
    are as of `role_of`; `others` is what else lies there, and may be labels under a damaged name.
    Where there are no images, or the names may mean two things, `SourceError` lists the arrays, and
    says which key names them.
    """
    roles = {name: role_of(name, variables) for name in arrays}
    for kind, name in (variables or {}).items():
        if not any(role and role.kind == kind and role.word == _GIVEN for role in roles.values()):
            raise _unclear(title, arrays, f"none is called '{name}', {nearest(name, arrays)}")
    if not any(role and role.kind == IMAGE for role in roles.values()):
        roles |= _unnamed_roles(arrays)
    # an array of another usual name than the first holds names of classes where it holds texts
    named = [(NAME_WORDS.index(r.word), n) for n, r in roles.items() if r and r.kind == NAMES]
    named = [(rank, n) for rank, n in sorted(named) if rank == 0 or _is_text(arrays[n])]
    choice = Choice(names=named[0][1] if named else None)
    splits: dict[str, dict[str, Role]] = {}
    for name, role in roles.items():
        if role and role.kind != NAMES:
            splits.setdefault(role.split or default, {})[name] = role
    for split, mine in splits.items():
        images, labels = _candidates(mine, arrays)
        if not images and labels:
            raise _unclear(title, arrays, f"{labels[0]} belongs to no images")
        if images:
            choice.pairs[split] = _pair(title, arrays, mine, images, labels)
    if not choice.pairs:
        raise _unclear(title, arrays, "none of them has a usual name of images")
    used = {name for pair in choice.pairs.values() for name in pair} | {choice.names}
    choice.left_out = [*(name for name in arrays if name not in used), *others]
    _check_left_out(title, arrays, choice, others)
    return choice


def _is_text(header: Stored | None) -> bool:
    return header is None or (len(header.shape) == 1 and header.dtype.kind in "SUO")


def _is_labels(header: Stored | None, count: int) -> bool:
    """Tell whether an array may be the labels of as many images."""
    return header is None or (header.shape[:1] == (count,) and len(header.shape) < 3)


def _unnamed_roles(arrays: Headers) -> dict[str, Role | None]:
    """Return the roles of arrays that `numpy.savez` named: images, and one label for each."""
    plain = {n: h for n, h in arrays.items() if h is not None and _UNNAMED.fullmatch(n)}
    images = [name for name, header in plain.items() if len(header.shape) in (3, 4)]
    labels = [n for n, h in plain.items() if n not in images]
    if len(plain) != len(arrays) or len(images) != 1 or len(labels) > 1:
        return {}
    if labels and not _is_labels(plain[labels[0]], plain[images[0]].shape[0]):
        return {}
    return {images[0]: Role(IMAGE, "", ""), **{name: Role(LABEL, "", "") for name in labels}}


def _candidates(roles: Mapping[str, Role], arrays: Headers) -> tuple[list[str], list[str]]:
    """Return what may be the images and the labels of one split."""
    images = [n for n, r in roles.items() if r.kind == IMAGE and (r.word or not r.split)]
    bare = [n for n, r in roles.items() if r.kind == IMAGE and n not in images]
    labels = [name for name, role in roles.items() if role.kind == LABEL]
    if not images:
        images = [n for n in bare if (header := arrays[n]) is not None and len(header.shape) > 1]
    if not (images and labels):  # x_mean may be anything
        images = [name for name in images if roles[name].sure]
        labels = [name for name in labels if roles[name].sure]
    return images, labels


def _pair(
    title: str, arrays: Headers, roles: Mapping[str, Role], images: list[str], labels: list[str]
) -> tuple[str, str | None]:
    """Return the images and the labels of one split."""
    if len(images) > 1:
        images = [i for i in images if any(belongs(roles[i], roles[n]) for n in labels)] or images
    if len(images) > 1:
        raise _unclear(title, arrays, f"{' or '.join(images)} may be the images")
    image, header = images[0], arrays[images[0]]
    count = header.shape[0] if header is not None and header.shape else -1
    fitting = [name for name in labels if _is_labels(arrays[name], count)]
    if len(fitting) > 1:
        raise _unclear(title, arrays, f"{' or '.join(fitting)} may be the labels of {image}")
    mine = fitting or [n for n in labels if belongs(roles[image], roles[n])] or labels
    return image, (mine[0] if mine else None)


def _check_left_out(title: str, arrays: Headers, choice: Choice, others: Collection[str]) -> None:
    """Raise where what is left out may be the labels of images without any."""
    for image, label in choice.pairs.values():
        header = arrays[image]
        if label is not None or header is None or not header.shape:
            continue
        count, rest = header.shape[0], choice.left_out
        unclear = [name for name in rest if name in others or _is_labels(arrays[name], count)]
        if unclear:
            wanted = (label_spellings(image) or ["labels"])[0]
            reason = f"holds {image} without {wanted}, and {', '.join(unclear)}"
            raise _unclear(title, arrays, reason)


def pick_splits(has: str, splits: Mapping[str, T], wanted: str | None) -> dict[str, T]:
    """Return the splits of a file that are wanted: all, or the one of a name, or the only one.

    What it `has` begins the message where that is unclear, as `a.npz: holds the splits`.
    """
    if wanted is None:
        return dict(splits)
    if wanted not in splits and len(splits) > 1:
        raise SourceError(f"{has} {', '.join(splits)}, expected '{wanted}' or one only")
    return {wanted: splits.get(wanted) or next(iter(splits.values()))}


def _unclear(title: str, arrays: Headers, reason: str) -> SourceError:
    shown = [
        name[:_LONGEST] if header is None else f"{name[:_LONGEST]} {header.shape} {header.dtype}"
        for name, header in arrays.items()
    ]
    return SourceError(
        f"{title}: holds {listed(shown) or 'nothing'}; expected arrays such as train_images and "
        f"train_labels, or x_train and y_train; {reason}; name them: "
        'variables: {image: NAME, label: NAME}, of several splits as "x_{split}"'
    )
