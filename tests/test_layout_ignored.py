"""What is not looked at is told by its kind, in inspect and prepare; no name of a file is."""

import os
from pathlib import Path

import pytest
from image_files import volume
from PIL import Image

from ssl_med.data.index import describe_layout
from ssl_med.data.readers import raster
from ssl_med.verbs.inspect import inspect
from ssl_med.verbs.prepare import prepare


@pytest.fixture
def folder(tmp_path) -> Path:
    tmp_path = tmp_path / "in"
    (tmp_path / "deep").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "deep"):
        Image.fromarray(volume((16, 17)).astype("uint8")).save(place / "a.png")
    for name in ("b.bmp", "c.BMP", "deep/d.bmp", "e.zip", "f.nii.bz2", "scan.Quasimodo", "README"):
        (tmp_path / name).write_bytes(b"xxxx")
    return tmp_path


def test_ignored_files_are_told_by_kind(folder, tmp_path, capsys):
    told = "ignored 7 other files: .bmp 3, .zip 1, .bz2 1, no suffix 1, other 1"
    (note,) = describe_layout(folder).notes
    assert sorted(note.split(": ")[1].split(", ")) == sorted(told.split(": ")[1].split(", "))
    assert note.startswith("ignored 7 other files: .bmp 3, ")
    inspect(folder)
    assert f"note        {note}" in capsys.readouterr().out
    prepare(folder, tmp_path / "store")
    said = capsys.readouterr().out
    assert f"note: {note}" in said
    assert "quasimodo" not in said.lower()


@pytest.mark.parametrize("bids", [False, True])
def test_a_folder_that_cannot_be_opened_is_told(folder, monkeypatch, bids):
    if bids:
        (folder / "dataset_description.json").write_text('{"BIDSVersion": "1.8.0"}')
        (folder / "deep").rename(folder / "sub-1")
    scan = os.scandir

    def locked(path):
        if Path(path).name in ("deep", "sub-1"):
            raise PermissionError(13, "denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert describe_layout(folder).notes[-1] == "1 folders could not be opened: what is in them is missing here"
    assert inspect(folder)["images"] == (0 if bids else 1)


def test_a_file_that_may_not_be_opened_stops_nothing(folder, monkeypatch):
    Image.fromarray(volume((16, 17)).astype("uint8")).save(folder / "secret.tif")
    original = Path.open

    def locked(path, *args, **kwargs):
        if path.name in ("README", "secret.tif"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", locked)
    monkeypatch.setattr(raster, "Bounded", lambda path: locked(path, "rb"))
    facts = inspect(folder)
    assert facts["layout"]["ignored_files"] == 7
    assert facts["broken"] == [{"name": "secret.tif", "reason": "cannot be opened: Permission denied"}]
