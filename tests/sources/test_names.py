"""Names: of splits and classes that are easily taken for one, of places, of named sets."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.cli import main
from pipeline.config.cluster_settings import make_cluster
from pipeline.config.job_settings import load_environment, load_job
from pipeline.core.errors import ConfigError, ConflictError, LabelError, SourceError
from pipeline.core.paths import locate
from pipeline.ingestion.plan import check_names
from pipeline.ingestion.request import default_store
from pipeline.sources.arrays import from_arrays
from pipeline.sources.registry import open_source, release

COMPOSED, SPLIT_UP = "caf\u00e9", "cafe\u0301"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")


def make_folder(folder, *classes):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(folder / name / "0.png")
    return folder


def arrays_of(*splits):
    return {name: (np.zeros((2, 4, 4), np.uint8), np.arange(2)) for name in splits}


# splits and classes ----------------------------------------------------------------------------


@pytest.mark.parametrize("names", [
    ("train", "Train"), ("TEST", "test"), (COMPOSED, SPLIT_UP), ("Caf\u00e9", SPLIT_UP),
    ("stra\u00dfe", "STRASSE"),
])  # fmt: skip
def test_splits_that_a_file_system_may_take_for_one_are_refused_at_the_beginning(names):
    with pytest.raises(SourceError) as caught:
        pipeline.ingest(from_arrays(arrays_of(*names), ["a", "b"]), "s.zarr")
    for name in names:
        assert ascii(name) in str(caught.value)
    assert "write them alike" in str(caught.value)
    assert not Path("s.zarr").exists()
    alike = arrays_of("train")  # as the message has it
    assert pipeline.ingest(from_arrays(alike, ["a", "b"]), "s.zarr").exists()


def test_a_list_whose_splits_differ_in_case_is_one_line(capsys):
    make_folder(Path("set"), "a", "b")
    text = "path,label,split\nset/a/0.png,a,train\nset/b/0.png,b,Train\n"
    Path("list.csv").write_text(text)
    assert main(["ingest", "list.csv"]) == 2
    assert "splits 'train' and 'Train' differ in case" in capsys.readouterr().err
    Path("list.csv").write_text(text.replace("Train", "train"))
    assert main(["ingest", "list.csv"]) == 0


def test_classes_that_are_one_name_in_unicode_are_refused_and_named_apart():
    assert unicodedata.normalize("NFC", SPLIT_UP) == COMPOSED
    with pytest.raises(LabelError) as caught:
        check_names([COMPOSED, "b", SPLIT_UP], ["train"])
    assert ascii(COMPOSED) in str(caught.value)
    assert ascii(SPLIT_UP) in str(caught.value)
    make_folder(Path("set"), COMPOSED, SPLIT_UP, "b")
    with pytest.raises(LabelError, match="in two ways in Unicode"):
        pipeline.ingest("set")
    check_names([SPLIT_UP, "b"], ["train"])


def test_classes_that_differ_in_case_stay_two_and_that_is_said(capsys):
    make_folder(Path("set"), "cat", "Cat", "Dog", "dog", "emu")
    assert main(["ingest", "set"]) == 0
    captured = capsys.readouterr()
    assert "classes 'Cat' and 'cat'; 'Dog' and 'dog' differ in case only" in captured.err
    found = pipeline.open_store("data/stores/set.zarr").class_names
    assert found == ["Cat", "Dog", "cat", "dog", "emu"]


# a home folder ---------------------------------------------------------------------------------


def test_a_place_may_begin_with_the_home_folder_wherever_it_comes_in(tmp_path, monkeypatch):
    home = tmp_path / "home"
    make_folder(home / "set" / "train", "a", "b")
    make_folder(home / "set" / "test", "a", "b")
    (home / "j.yml").write_text(
        "images: {source: ~/set, store: ~/s.zarr}\noutput: ~/r\nreport: false\n"
    )
    assert main(["run", "~/j.yml"]) == 0
    assert main(["show", "~/r", "--grid", "~/g.png"]) == 0
    assert main(["ingest", "~/set", "--output=~/t.zarr"]) == 0
    assert main(["ingest", "~/j.yml", "--set", "store=~/u.zarr"]) == 0
    splits = {"train": "~/set/{train,test}", "test": ["~/set/test"]}
    assert pipeline.ingest({"splits": splits}, "~/v.zarr") == home / "v.zarr"
    assert pipeline.open_store("~/s.zarr").path == home / "s.zarr"
    assert pipeline.open_run(Path("~/r")).path == home / "r"
    assert {"r", "s.zarr", "t.zarr", "u.zarr", "v.zarr", "g.png"} <= {
        p.name for p in home.iterdir()
    }
    assert not (tmp_path / "~").exists()


def test_paths_of_settings_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "c.yml").write_text("kind: threads\nworkers: 3\n")
    assert make_cluster("~/c.yml").workers == 3
    for name in ("datasets", "data", "catalog"):
        monkeypatch.setenv(f"PIXSIM_{name.upper()}", f"~/{name}")
        assert getattr(load_environment(), name) == home / name
    images = pipeline.make_images({"source": "~/l.csv", "root": "~/r", "store": Path("~/s")})
    assert (images.source, images.root, images.store) == tuple(
        str(home / name) for name in ("l.csv", "r", "s")
    )
    assert locate("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x")
    assert locate("./~") == Path("~")


# merges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "mode"), [
    ("x-all: &all {mode: L}\nimages: {<<: *all, source: set}\n", "L"),
    (".all: &all {mode: L}\nimages: {source: set, <<: *all, mode: RGB}\n", "RGB"),
    ("x-a: &a {mode: L}\nx-b: &b {<<: *a}\nimages: {<<: [*b, {mode: RGB}], source: set}\n", "L"),
    ("images: {<<: {mode: L}, source: set}\n", "L"),
    ("<<: {images: {source: set, mode: L}}\n", "L"),
    ("x-i: &i {source: set, mode: L}\nimages: *i\n", "L"),
])  # fmt: skip
def test_a_job_file_may_merge_mappings(text, mode):
    Path("j.yml").write_text(text)
    images = load_job("j.yml").images
    assert (images.source, images.mode) == ("set", mode)


@pytest.mark.parametrize(("text", "said"), [
    ("images: {source: a, source: b}\n", "'source'.* is given twice"),
    ("images: {<<: {mode: L, mode: RGB}, source: a}\n", "'mode'.* is given twice"),
    ("images: {<<: 3, source: a}\n", "for merging"),
    ("all: &all {mode: L}\nimages: {<<: *all, source: a}\n", "unknown key 'all'"),
    (f"a0: &a0 {{<<: {{{', '.join(f'k{n}: 1' for n in range(99))}}}}}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)
    ), "merges more than"),
], ids=["twice", "twice in a merge", "a number", "unknown", "without end"])  # fmt: skip
def test_what_cannot_be_merged_is_refused(text, said):
    Path("j.yml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_job("j.yml")


# a folder of the name of a catalog set ----------------------------------------------------------


def test_a_folder_of_the_name_of_a_set_wins_and_that_is_said(capsys):
    make_folder(Path("digits"), "a", "b")
    assert main(["ingest", "digits"]) == 0
    captured = capsys.readouterr()
    assert "'digits' is the folder of that name; catalog:digits is" in captured.err
    store = pipeline.open_store("data/stores/digits.zarr")
    assert store.class_names == ["a", "b"]
    assert main(["ingest", "catalog:digits"]) == 2
    assert "--output" in capsys.readouterr().err
    assert main(["ingest", "catalog:digits", "--output", "c.zarr"]) == 0
    assert len(pipeline.open_store("c.zarr").class_names) == 10
    with pytest.raises(ConflictError, match=r"images\.store=PATH"):
        pipeline.run_job(pipeline.make_job({"name": "j", "images": "catalog:digits"}))


def test_the_kind_decides_between_a_folder_and_a_set_too():
    make_folder(Path("digits"), "a", "b")
    for images, provenance in (
        ({"source": "digits", "kind": "catalog"}, "digits"), ("catalog:digits", "digits"),
        ({"source": "digits", "kind": "folder"}, "folder"), ("digits", "folder"),
    ):  # fmt: skip
        source = open_source(images)
        assert source.provenance["kind"] == provenance
        release(source)


def test_a_set_is_repaired_from_the_catalog_whatever_folder_is_there():
    store = pipeline.ingest("digits")
    assert store == default_store("digits") == default_store("catalog:digits")
    shard = next(path for path in (store / "test/image/c").rglob("*") if path.is_file())
    shard.unlink()
    make_folder(Path("digits"), "a", "b")
    assert [damage.file for damage in pipeline.verify(store, repair=True)]
    assert pipeline.verify(store) == []


def test_a_folder_with_the_files_of_a_set_is_the_set(monkeypatch):
    entry = pipeline.list_datasets()[0][0]
    folder = Path(entry.name)
    folder.mkdir()
    for split in entry.splits.values():
        for role in ("images", "labels"):
            (folder / f"{split[role]}.gz").write_bytes(b"x")
    asked = []
    monkeypatch.setattr("pipeline.sources.registry.open_dataset", asked.append)
    assert open_source(entry.name) is None
    assert asked == [entry.name]


def test_a_set_that_the_catalog_does_not_have_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        open_source("catalog:digit")
