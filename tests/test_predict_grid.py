"""Predictions on the source's grid by models that were trained on another one."""

from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from stores import save_nifti, volume

from finetune import Classify, MultiLabel, Ordinal, Regress
from ssl_med.data.readers import read
from ssl_med.data.record import Record
from ssl_med.data.resample import from_orientation, nearest_onto, to_orientation
from ssl_med.verbs.predict import _column_names, _other_grid, _predict_one, _write_map


@pytest.mark.parametrize("most", [255, 256, 1000])
@pytest.mark.parametrize("reader", ["raster", "nifti", "nrrd"])
def test_label_maps_hold_every_label(tmp_path, most, reader):
    """8 bits would make class 256 background, without a word."""
    labels = np.zeros((6, 5) if reader == "raster" else (4, 6, 5), np.int64)
    labels[..., 2:4] = most
    source = save_nifti(tmp_path / "scan.nii.gz", labels.T.astype(np.int16))
    name = {"raster": "scan.png", "nifti": "scan.nii.gz", "nrrd": "scan.nrrd"}[reader]
    image = SimpleNamespace(affine=np.diag([1.0, 1.5, 2.0, 1.0]))
    _write_map(labels, Record(name, reader, (source,)), image, tmp_path / "out", set())
    (path,) = (tmp_path / "out").iterdir()
    back = np.asarray(Picture.open(path)) if reader == "raster" else np.asanyarray(nibabel.load(path).dataobj).T
    assert back.dtype == (np.uint8 if most < 256 else np.uint16)
    assert (back == labels).all()


class Threshold:
    """Labels what is bright, wherever it lies."""

    def __init__(self):
        self.backbone = self

    def multiple(self):
        return (4, 4, 4)

    def predict(self, batch):
        image = batch["image"][:, :1]
        return (image > (image.amax() + image.amin()) / 2).long()


GRIDS = {
    "own": {},
    "spacing": {"prepared": {"spacing": [1.0, 0, 0.7], "orientation": "RAS"}},
    "orientation": {"prepared": {"spacing": [], "orientation": "LPI"}},
    "axes": {"prepared": {"spacing": [1.0, 1.0, 1.0], "orientation": "SAL", "order": 1}},
    "crops": {"fixed_spacing_mm": [1.2, 1.2, 1.2]},
    "both": {"prepared": {"spacing": [1.0, 1.0, 1.0], "orientation": "ILP"}, "fixed_spacing_mm": [0.9, 1.1, 1.3]},
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("codes", ["RAS", "LSP"])
def test_labels_come_back_to_the_source(tmp_path, name, codes):
    mask = volume(3)[1]
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    file = nibabel.Nifti1Image((40 * mask.clip(0, 1) + 10).astype(np.int16), affine)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes))
    file = file.as_reoriented(turn)
    path = save_nifti(tmp_path / "in" / "scan.nii.gz", np.asanyarray(file.dataobj), file.affine)
    record = Record("scan.nii.gz", "nifti", (path,))
    image = replace(read(record), modality="MR")
    card = {"input": {"intensity": "unit", "crop": [8, 8, 8], **GRIDS[name]}}
    found = _predict_one(Threshold(), card, image)
    assert found.shape == image.array.shape
    truth = image.array > 30
    overlap = 2 * (found.astype(bool) & truth).sum() / (found.astype(bool).sum() + truth.sum())
    assert overlap == 1 if name in ("own", "orientation") else overlap > 0.75
    places = [np.argwhere(part[0]).mean(0) for part in (found, truth)]
    assert np.abs(places[0] - places[1]).max() < 0.5  # no shift
    _write_map(found[0], record, image, tmp_path / "out", set())
    written = nibabel.load(tmp_path / "out" / "scan.nii.gz")
    assert np.allclose(written.affine, file.affine)
    assert written.shape == file.shape
    assert bool(_other_grid(card)) == (name != "own")


def test_nearest_keeps_the_outer_edge():
    line = np.array([[1, 2, 3, 4]])
    assert nearest_onto(line, (1.0,), (8,), (0.5,)).tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]]
    assert nearest_onto(line, (1.0,), (2,), (2.0,)).tolist() == [[2, 4]]
    assert nearest_onto(line, (1.0,), (5,), (1.0,)).tolist() == [[1, 2, 3, 4, 4]]


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIL"])
def test_an_orientation_and_back(tmp_path, codes):
    image = read(Record("a", "nifti", (save_nifti(tmp_path / "a.nii.gz", volume(0)[0]),)))
    turned = to_orientation(image, codes)
    assert np.array_equal(from_orientation(turned.array, codes), image.array)
    assert torch.tensor(turned.array.shape).prod() == image.array.size


def test_columns_of_a_table_are_named_by_what_the_numbers_are():
    facts = {"class_names": ["left", "right"], "finding_names": ["nodule", "effusion", "none"]}
    assert _column_names("class_names", facts, 2) == ["left", "right"]
    assert _column_names("finding_names", facts, 3) == ["nodule", "effusion", "none"]
    assert _column_names("value", facts, 1) == ["value"]  # never the name of a class
    assert _column_names("class_names", facts, 3) == ["class_0", "class_1", "class_2"]
    assert _column_names("finding_names", {"class_names": ["left", "right"]}, 2) == ["finding_0", "finding_1"]
    assert [task.answers for task in (Classify, Ordinal, MultiLabel, Regress)] == [
        *("class_names", "class_names", "finding_names", "value")
    ]
