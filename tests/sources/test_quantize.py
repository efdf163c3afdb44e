"""Packing of floats: how near it is, for which values, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pipeline.core.blocks import UNREADABLE, Block, Problem
from pipeline.core.errors import ConfigError, SourceError
from pipeline.images.conversion import Conversion
from pipeline.sources.array_source import ArraySource
from pipeline.sources.arrays import from_arrays
from pipeline.sources.quantize import ConvertedSource, Packing, pack_floats

COUNT = 40


def make(dtype="float32", low=-3.5, high=9.25, count=COUNT, seed=0, shape=(5, 4)):
    images = np.random.default_rng(seed).uniform(low, high, (count, *shape)).astype(dtype)
    images[3, 1, 2], images[-1, 0, 0] = low, high
    return images


def source_of(**splits):
    return from_arrays({k: (v, np.zeros(len(v), int)) for k, v in splits.items()}, ["a"])


class Careless(ArraySource):
    """A source that does not look at its values."""

    def read(self, split, start, stop):
        (part,) = self.parts[split]
        images, labels = (stored.read(start, stop) for stored in (part.images, part.labels))
        return Block(images, labels, [""] * (stop - start))


def read_all(source, split="train", step=COUNT):
    count = source.splits()[split].count
    blocks = [source.read(split, s, min(s + step, count)) for s in range(0, count, step)]
    return np.concatenate([block.images for block in blocks])


def errors(values, stored, encoding):
    """How far each value is from what its stored number means, as exact fractions."""
    scale, offset = Fraction(encoding["scale_factor"]), Fraction(encoding["add_offset"])
    pairs = zip(values.ravel().tolist(), stored.ravel().tolist(), strict=True)
    return [abs(Fraction(value) - (q * scale + offset)) for value, q in pairs]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value_range", [None, (-4.0, 10.0)])
def test_values_come_back_within_the_stated_error(dtype, value_range):
    images = make(dtype)
    packed = pack_floats(source_of(train=images), value_range)
    stored = read_all(packed)
    assert (stored.dtype, packed.full_scale) == (np.uint16, 65535)
    stated = packed.provenance["packing"]
    assert stated["rounding_error"] == pytest.approx(stated["scale_factor"] / 2)
    assert max(errors(images, stored, packed.encoding)) <= Fraction(stated["rounding_error"])
    assert stated["measured"] == (value_range is None)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (-1.0, 1.0), (1e15, 1e15 + 2), (1e-300, 3e-300), (-1e307, 1e307), (0.1, 0.7)],
)
def test_the_worst_values_between_two_steps_are_within_the_stated_error(low, high):
    packing = Packing(low, high, False)
    steps = np.array([0, 1, 2, 32766, 32767, 65533, 65534])
    middles = [Fraction(low) + (Fraction(high) - Fraction(low)) * (2 * k + 1) / 131070 for k in
               steps.tolist()]  # fmt: skip
    near = np.array([float(m) for m in middles])
    values = np.concatenate([near, np.nextafter(near, low), np.nextafter(near, high)])
    values = values[(values >= low) & (values <= high)]
    found = errors(values, packing.apply(values), packing.encoding)
    assert max(found) <= Fraction(packing.rounding_error)
    assert max(found) > Fraction(packing.rounding_error) / 4 or low > 1e14


def test_the_extremes_are_stored_as_the_ends_and_measured_over_all_splits():
    train, test = make(low=-1, high=3), make(low=-7, high=2, seed=1)
    packed = pack_floats(source_of(train=train, test=test))
    low, high = -7.0, 3.0
    assert packed.provenance["packing"]["range"] == [low, high]
    assert packed.encoding == {"scale_factor": (high - low) / 65535, "add_offset": low}
    assert read_all(packed)[-1, 0, 0] == 65535
    assert read_all(packed, "test")[3, 1, 2] == 0


def test_packing_is_numpys_rounding_in_float64():
    images = make()
    packed = pack_floats(source_of(train=images), (-3.5, 9.25))
    wide = images.astype(np.longdouble)
    exact = (wide - np.longdouble(-3.5)) / np.longdouble(12.75) * 65535
    assert np.abs(read_all(packed) - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("step", [1, 7, 13, COUNT])
def test_any_cut_gives_the_same_numbers(step):
    packed = pack_floats(source_of(train=make()))
    np.testing.assert_array_equal(read_all(packed, step=step), read_all(packed))


def test_the_range_is_measured_in_pieces_that_cover_every_sample(monkeypatch):
    monkeypatch.setattr("pipeline.sources.quantize._TASK_BYTES", 3 * 80)
    images, other, counts = make(), make(count=8, seed=2), []

    def run(function, count):
        counts.append(count)
        again = pickle.loads(pickle.dumps(function))
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(again, range(count)))

    for place in (0, 2, 3, 38, 39):
        changed = images.copy()
        changed[place, 4, 3] = 50 + place
        counts.clear()
        packed = pack_floats(source_of(train=changed, test=other), None, run)
        assert counts == [14 + 3]
        assert packed.provenance["packing"]["range"] == [-3.5, 50 + place]


def test_equal_values_are_stored_as_0_without_error():
    packed = pack_floats(source_of(train=np.full((3, 2, 2), 2.5, np.float32)))
    assert packed.encoding == {"scale_factor": 1.0, "add_offset": 2.5}
    assert packed.provenance["packing"]["rounding_error"] == 0
    assert read_all(packed).tolist() == np.zeros((3, 2, 2)).tolist()


def test_minus_zero_never_decides_what_the_provenance_says():
    for order in ([0.0, -0.0], [-0.0, 0.0]):
        images = np.zeros((2, 1, 2), np.float32)
        images[0, 0] = order
        images[1, 0] = 1
        packed = pack_floats(source_of(train=images))
        assert math.copysign(1, packed.encoding["add_offset"]) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("value_range", [None, (-4, 10)])
def test_values_that_are_no_numbers_are_refused_by_place(value, value_range):
    images = make()
    images[17, 2, 1] = value
    source = Careless(**vars(source_of(train=make(), test=images)))
    message = rf"split 'test', sample 17, pixel \(2, 1\): value {value}, expected a finite"
    with pytest.raises(SourceError, match=message):
        read_all(pack_floats(source, value_range), "test", 10)


@pytest.mark.parametrize(("value", "good"), [(10.5, False), (-4.5, False), (10.0, True)])
def test_values_outside_a_given_range_are_refused_by_place(value, good):
    images = make()
    images[33, 4, 3] = value
    packed = pack_floats(source_of(train=images), (-4, 10))
    if good:
        assert read_all(packed)[33, 4, 3] == 65535
        return
    message = rf"sample 33, pixel \(4, 3\): value {value}, expected -4.0 to 10.0; give a value_"
    with pytest.raises(SourceError, match=message):
        read_all(packed, step=10)


@pytest.mark.parametrize(
    "value_range", [(1, 0), (0, np.inf), (np.nan, 1), (-1.7e308, 1.7e308), (0, 5e-324)]
)
def test_a_range_that_cannot_be_used_is_refused(value_range):
    with pytest.raises(ConfigError, match="cannot be packed"):
        pack_floats(source_of(train=make()), value_range)


def test_splits_of_two_types_are_refused():
    splits = source_of(train=make()), source_of(test=np.zeros((2, 5, 4), np.uint8))
    parts = {name: part for split in splits for name, part in split.parts.items()}
    source = Careless(parts, splits[0].labelling, 1, {})
    with pytest.raises(SourceError, match="split 'test': images of uint8, expected float32"):
        pack_floats(source)


class Flawed:
    """A source in which two samples cannot be used."""

    def __init__(self, inner, bad):
        self.inner, self.bad = inner, bad
        self.class_names, self.provenance = inner.class_names, inner.provenance

    def splits(self):
        return self.inner.splits()

    def read(self, split, start, stop):
        block = self.inner.read(split, start, stop)
        images, problems = block.images.copy(), {}
        for place in self.bad:
            if start <= place < stop:
                images[place - start] = 0
                problems[place - start] = Problem(UNREADABLE, "broken")
        return replace(block, images=images, problems=problems)


@pytest.mark.parametrize("value_range", [None, (100, 200)])
def test_samples_that_cannot_be_used_neither_count_nor_hurt(value_range):
    images = make(low=100, high=200)
    packed = pack_floats(Flawed(source_of(train=images), {5, 20, 21}), value_range)
    assert packed.provenance["packing"]["range"] == [100, 200]
    for step in (1, 20, COUNT):
        stored = read_all(packed, step=step)
        assert not stored[[5, 20, 21]].any()
        assert stored[6].any()
    assert packed.read("train", 20, 22).problems.keys() == {0, 1}


def test_the_rest_of_a_block_is_passed_on():
    packed = pack_floats(source_of(train=make()))
    block = packed.read("train", 4, 6)
    assert isinstance(block, Block)
    assert (list(block.origins), block.labels.tolist()) == (["train[4]", "train[5]"], [0, 0])
    assert packed.class_names == ("a",)
    assert packed.splits()["train"].dtype == "uint16"


def test_the_provenance_is_json_and_tells_ranges_apart():
    sources = [pack_floats(source_of(train=make()), found) for found in (None, (-4, 10), (-4, 11))]
    texts = {json.dumps(source.provenance, sort_keys=True, allow_nan=False) for source in sources}
    assert len(texts) == 3


# conversions of arrays ---------------------------------------------------------------------------


def test_a_conversion_changes_the_shape_and_keeps_the_old_size():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 5, 3), np.uint8)
    inner = source_of(train=images)
    source = ConvertedSource(inner, Conversion(crop=(4, 3), mode="L"))
    assert source.splits()["train"].shape == (4, 3)
    block = source.read("train", 2, 5)
    weights = np.array([19595, 38470, 7471])
    grey = (images[2:5].astype(np.int64) @ weights + 32768) >> 16
    np.testing.assert_array_equal(block.images, grey[:, 2:6, 1:4])
    assert block.sizes.tolist() == [[5, 8]] * 3
    assert "crop" in source.provenance["conversion"]
    assert source.provenance["sha256"] == inner.provenance["sha256"]


def test_floats_are_packed_before_they_are_converted():
    images = make(shape=(6, 6))
    source = pack_floats(ConvertedSource(source_of(train=images), Conversion(crop=(2, 2))))
    assert (source.splits()["train"].shape, source.splits()["train"].dtype) == ((2, 2), "uint16")
    direct = pack_floats(source_of(train=images))
    np.testing.assert_array_equal(read_all(source), read_all(direct)[:, 2:4, 2:4])
    assert source.encoding == direct.encoding
    assert source.full_scale == 65535
    assert source.provenance.keys() >= {"packing", "conversion"}


def test_a_sample_that_cannot_be_used_stays_black_whatever_is_done():
    inner = Flawed(source_of(train=make(shape=(6, 6))), {1})
    inner.full_scale = 1
    source = ConvertedSource(pack_floats(inner), Conversion(resize=(3, 3)))
    block = source.read("train", 0, 3)
    assert not block.images[1].any()
    assert block.images[0].any()
    assert block.problems.keys() == {1}
