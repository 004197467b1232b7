"""What is sound but not wanted is set aside, what is broken is named: alike in ``inspect`` and in ``prepare``."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import PIXELS, dicom_slice, saved
from image_files import record, volume, written
from pydicom.uid import SecondaryCaptureImageStorage

from ssl_med.data.readers import read
from ssl_med.data.readers.dicom import find_series
from ssl_med.data.record import Record, SetAside, Unreadable
from ssl_med.errors import UserError
from ssl_med.verbs.inspect import inspect
from ssl_med.verbs.prepare import prepare

RAW_DATA, SIEMENS_PRIVATE = "1.2.840.10008.5.1.4.1.1.66", "1.3.12.2.1107.5.9.1"
ROWS = b"\x28\x00\x10\x00US"
CUT = "header cut short: no Rows or Columns"


def cut_before_rows(path: Path) -> Path:
    data = path.read_bytes()
    return written(path, data[: data.index(ROWS)])


def saved_series(folder: Path, count: int = 5, **tags) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [saved(folder / f"{n}.dcm", dicom_slice(n, PIXELS[n], **tags)) for n in range(count)]


def test_cut_off_dicom_files_are_broken_and_named(tmp_path, capsys):
    paths = saved_series(tmp_path / "a")
    cut_before_rows(paths[4])
    written(paths[3], paths[3].read_bytes()[:200])  # ends before its modality
    facts = inspect(tmp_path / "a")
    assert facts["set_aside"] == {}
    assert {entry["name"]: entry["reason"] for entry in facts["broken"]} == {"3.dcm": CUT, "4.dcm": CUT}
    assert f"broken      4.dcm: {CUT}" in capsys.readouterr().out
    assert facts["usable"] == 1
    with pytest.raises(UserError, match=rf"2 of 3 images cannot be used: 2 x {CUT}"):
        prepare(tmp_path / "a", tmp_path / "store")


def test_what_is_left_of_a_series_says_that_files_were_cut(tmp_path):
    paths = saved_series(tmp_path)
    cut_before_rows(paths[4])
    found = {one.files: one for one in find_series(paths)}
    rest = found[tuple(paths[:4])]
    assert (rest.aside, rest.notes) == ("", ("1 files of this series are cut short and left out",))
    with pytest.raises(Unreadable, match=CUT):
        read(Record("x", "dicom", found[(paths[4],)].files))


@pytest.mark.parametrize(
    ("kind", "aside"),
    [(RAW_DATA, True), (SIEMENS_PRIVATE, True), (SecondaryCaptureImageStorage, False), ("", False)],
)
def test_objects_without_pixels_are_known_by_their_class(tmp_path, kind, aside):
    dataset = dicom_slice(0, PIXELS[0], Modality="MR")
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(dataset, tag)
    dataset.SOPClassUID = kind or RAW_DATA
    path = saved(tmp_path / "a.dcm", dataset)
    if not kind:
        written(path, path.read_bytes().replace(b"\x08\x00\x16\x00UI", b"\x08\x00\x17\x00UI"))  # no class is told
    (found,) = find_series([path])
    assert found.aside == ("no image: DICOM object of modality MR" if aside else "")
    with pytest.raises(SetAside if aside else Unreadable) as caught:
        read(record(path))
    assert isinstance(caught.value, SetAside) == aside


def test_time_series_of_bids_do_not_stop_prepare(tmp_path):
    for subject in range(2):
        for place, kind, shape in (
            ("anat", "T1w", (12, 12, 12)),
            ("func", "task-rest_bold", (6, 6, 6, 3)),
            ("dwi", "dwi", (6, 6, 6, 3)),
        ):
            folder = tmp_path / "bids" / f"sub-{subject}" / place
            folder.mkdir(parents=True)
            nibabel.save(nibabel.Nifti1Image(volume(shape), np.eye(4)), folder / f"sub-{subject}_{kind}.nii.gz")
    facts = inspect(tmp_path / "bids")
    assert (facts["usable"], facts["broken"]) == (2, [])
    assert facts["set_aside"] == {"time series, 4 axes": 4}
    assert inspect(tmp_path / "bids", sample=1)["set_aside"] == {"time series, 4 axes": 4}
    counts = prepare(tmp_path / "bids", tmp_path / "store", max_bad_share=0.0)
    assert (counts["images"], counts["set_aside"], counts["refused"]) == (2, 4, {"time series, 4 axes": 4})


def test_a_mask_that_is_a_time_series_is_broken(tmp_path):
    nibabel.save(nibabel.Nifti1Image(volume(), np.eye(4)), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(volume((4, 5, 6, 2)), np.eye(4)), tmp_path / "a_mask.nii")
    facts = inspect(tmp_path)
    assert facts["broken"] == [{"name": "a.nii", "reason": "mask: time series, 4 axes"}]
