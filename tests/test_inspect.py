"""``inspect`` counts everything, names what is broken, needs no torch and no memory for many files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_files import PIXELS, multiframe, saved
from image_files import record as record_of
from pydicom.data import get_testdata_file
from test_index import medmnist, picture, scan

from ssl_med.data.census import Counts, Distinct, Reservoir, Spread
from ssl_med.data.peek import peek
from ssl_med.data.readers import read
from ssl_med.data.record import Record, Unreadable
from ssl_med.verbs.inspect import inspect


def test_everything_is_counted(tmp_path, capsys):
    for name in ("a", "b"):
        scan(tmp_path / "images" / f"{name}.nii.gz")
        scan(tmp_path / "labels" / f"{name}.nii.gz")
    (tmp_path / "images" / "c.nii.gz").write_bytes(b"<html>")
    facts = inspect(tmp_path)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["images"], facts["usable"], facts["patients"]) == (3, 2, 3)
    assert facts["shapes"]["3D"]["median"] == [5, 4, 3]
    assert facts["intensity"] == {"min": 0.0, "p0.5": pytest.approx(0.295), "p99.5": pytest.approx(58.705), "max": 59.0}
    assert facts["masks"]["count"] == 2
    assert facts["masks"]["values"]["59"] == 2
    assert facts["broken"] == [{"name": "images/c.nii.gz", "reason": "not a NIfTI file"}]
    assert facts["broken_reasons"] == {"not a NIfTI file": 1}
    assert "broken      images/c.nii.gz: not a NIfTI file" in capsys.readouterr().out
    assert inspect(tmp_path, limit=1)["images"] == 1


def test_labels_have_their_names(tmp_path, capsys):
    medmnist(tmp_path / "m.npz", classes=np.array(["no", "yes"]))
    facts = inspect(tmp_path)
    assert facts["labels"] == {"0 no": 2, "1 yes": 3}
    assert facts["splits"] == {"test": 2, "train": 3}
    assert facts["patients"] == 5


def test_patients_studies_and_sites(tmp_path, capsys):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("file,patient,study,site\na.png,p,1,x\nb.png,p,2,x\nc.png,q,3,x\n")
    facts = inspect(tmp_path)
    assert (facts["patients"], facts["studies"], facts["sites"]) == (2, 3, 1)
    assert "patients    2, studies 3, sites 1" in capsys.readouterr().out


def test_intensities_by_modality(tmp_path, capsys):
    picture(tmp_path / "a.png", 0), picture(tmp_path / "b.png", 100)
    (tmp_path / "t.csv").write_text("file,modality\na.png,CR\nb.png,US\n")
    facts = inspect(tmp_path)
    assert facts["intensity_by_modality"]["CR"]["max"] == 29
    assert facts["intensity_by_modality"]["US"]["min"] == 100
    assert (facts["intensity"]["min"], facts["intensity"]["max"]) == (0, 129)
    assert "intensity   US: min 100" in capsys.readouterr().out


def test_a_sample_reads_few_voxels_and_all_headers(tmp_path, capsys):
    for number in range(12):
        scan(tmp_path / f"s{number}.nii.gz")
    (tmp_path / "s3.nii.gz").write_bytes(b"<html>")
    facts = inspect(tmp_path, sample=4)
    assert (facts["images"], facts["voxels_of"], facts["ranks"]) == (12, 4, {"3D": 11})
    assert facts["shapes"]["3D"] == {"min": [5, 4, 3], "median": [5, 4, 3], "max": [5, 4, 3]}
    assert facts["channels"] == {"1": 4}
    assert facts["broken_reasons"] == {"not a NIfTI file": 1}
    assert inspect(tmp_path, sample=4) == facts


def test_what_is_set_aside_is_not_broken(tmp_path, capsys):
    from pydicom import dcmread

    for name, kind in (
        ("a", ["ORIGINAL", "PRIMARY"]),
        ("b", ["DERIVED", "SECONDARY"]),
        ("c", ["ORIGINAL", "LOCALIZER"]),
    ):
        data = dcmread(get_testdata_file("CT_small.dcm", download=False))
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"] if name == "c" else kind
        data.SeriesInstanceUID = f"{data.SeriesInstanceUID}.{'abc'.index(name)}"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{data.SOPInstanceUID}.{'abc'.index(name)}"
        data.save_as(tmp_path / f"{name}.dcm")
    facts = inspect(tmp_path)
    assert (facts["images"], facts["usable"], facts["broken"]) == (3, 1, [])
    assert facts["set_aside"] == {"derived from other images of its study": 1, "localiser": 1}
    assert "set aside   1 x localiser" in capsys.readouterr().out


WITHOUT_TORCH = """
import sys
from ssl_med.data.index import find_images
from ssl_med.errors import UserError
from ssl_med.verbs.inspect import inspect
assert inspect(sys.argv[1])["usable"] == 2
assert not {"torch", "monai", "pytorch_lightning"} & set(sys.modules)
try:
    find_images(sys.argv[1], layout="folders")
except UserError as error:
    assert "layout is 'folders', expected one of auto" in str(error)
else:
    raise AssertionError
"""


def test_no_torch(tmp_path):
    picture(tmp_path / "a.png"), scan(tmp_path / "b.nii")
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)], check=True, cwd=root, capture_output=True)


PEAK = """
import sys, tracemalloc
from ssl_med.verbs.inspect import inspect
inspect(sys.argv[1], limit=5)  # imports and caches
tracemalloc.start()
inspect(sys.argv[1], sample=100)
print(tracemalloc.get_traced_memory()[1])
"""


def peak_of(folder: Path, count: int) -> int:
    """Most bytes that Python holds at once, in a process without the type checks of the tests, which take memory."""
    first = picture(folder / "first.png").read_bytes()
    for number in range(count):
        path = folder / f"p{number // 50:04d}" / f"{'xy'[number % 2]}{number:05d}s.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(first)
    command = [sys.executable, "-c", PEAK, str(folder)]
    done = subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    few, many = peak_of(tmp_path / "few", 200), peak_of(tmp_path / "many", 2000)
    assert many - few < 60 * 1800  # bytes: a path alone takes 200, a record a thousand


# --- headers


@pytest.mark.parametrize("codes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_header_says_what_reading_says(tmp_path, codes):
    import nibabel

    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.0, -2.0, 3.0])[:, list(codes)]
    nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine).to_filename(tmp_path / "a.nii.gz")
    records = [
        Record("n", "nifti", (tmp_path / "a.nii.gz",)),
        Record("p", "raster", (picture(tmp_path / "b.png"),)),
        Record("d", "dicom", (Path(get_testdata_file("MR_small.dcm", download=False)),)),
    ]
    for record in records:
        header, image = peek(record), read(record)
        assert header
        assert header.shape == image.array.shape[1:]
        assert header.spacing == pytest.approx(image.spacing)
        assert header.modality == image.modality


def test_headers_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "odd.png").write_bytes(b"no picture")
    for name, reason in (("empty.png", "empty file"), ("odd.png", "damaged picture"), ("none.png", "file is missing")):
        with pytest.raises(Unreadable, match=reason):
            peek(Record("x", "raster", (tmp_path / name,)))
    with pytest.raises(Unreadable, match="set aside: old"):
        peek(Record("x", "raster", (tmp_path / "odd.png",), aside="old"))


# --- counters


def test_distinct_is_exact_and_then_near():
    few = Distinct(most=100)
    for number in range(150):
        few.add(f"{number % 90}")
    assert (len(few), few.exact) == (90, True)
    many = Distinct(most=1000)
    for number in range(20_000):
        many.add(f"{number % 10_000}")
    assert not many.exact
    assert abs(len(many) - 10_000) < 1000  # three times 1 / sqrt(1000)


def test_a_reservoir_is_uniform_and_repeats():
    hits = np.zeros(20)
    for seed in range(600):
        sample: Reservoir[int] = Reservoir(5, seed)
        for item in range(20):
            sample.add(item)
        assert sample.in_order() == sorted(sample.in_order())
        hits[sample.in_order()] += 1
    assert abs(hits - 150).max() < 50  # binomial: sd 10.6
    none: Reservoir[int] = Reservoir(0)
    none.add(1)
    assert none.in_order() == []


def test_a_spread_keeps_extremes_beyond_its_sample():
    values = np.random.default_rng(0).normal(size=(500, 2))
    spread = Spread(most=50)
    for value in values:
        spread.add(tuple(value))
    facts = spread.facts()
    assert facts["min"] == values.min(0).tolist()
    assert facts["max"] == values.max(0).tolist()
    assert np.abs(facts["median"]).max() < 0.6


def test_counts_have_a_bound():
    counts = Counts(most=3)
    for word in ("b", "10", "9", "c", "d", "b"):
        counts.add("x", word)
    assert counts.facts("x") == {"9": 1, "10": 1, "b": 2, "other": 2}


def test_an_ultrasound_film_is_as_long_as_its_frames(tmp_path):
    film = record_of(saved(tmp_path / "a.dcm", multiframe(None, Modality="US")))
    header, image = peek(film), read(film)
    assert header is not None
    assert header.shape == image.array.shape[1:] == PIXELS.shape
    assert (header.spacing, header.modality) == (image.spacing, "US")
