"""The demo's data: synthetic subjects follow their law, and the files written hold what was made."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from scipy.linalg import expm
from scipy.ndimage import binary_fill_holes

from ssl_med.data import cohort, samples
from ssl_med.errors import UserError

SPACING = 4.0  # coarse, to be quick
TISSUES = {"grey": 1, "white": 2, "fluid": 3}


@pytest.fixture(scope="module")
def template():
    return cohort.load_template()


@pytest.fixture(scope="module")
def subjects(template):
    return [cohort.subject(template, 0, number, SPACING) for number in range(8)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return samples.write_cohort(tmp_path_factory.mktemp("cohort"), subjects=3, seed=0, spacing_mm=SPACING)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def dice(first, second) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_a_subject_is_a_function_of_seed_and_number(template, subjects):
    again = cohort.subject(template, 0, 3, SPACING)
    assert np.array_equal(again.image, subjects[3].image)
    assert np.array_equal(again.labels, subjects[3].labels)
    assert again.facts == subjects[3].facts
    for other in (subjects[4], cohort.subject(template, 1, 3, SPACING)):
        assert not np.array_equal(again.image, other.image)
        assert dice(again.labels == 2, other.labels == 2) < 0.9  # the shape differs, not only the contrast


def test_types_grid_and_labels(subjects):
    for made in subjects:
        assert made.image.dtype == np.int16
        assert made.labels.dtype == np.uint8
        assert made.image.shape == made.labels.shape == (48, 56, 48)
        assert np.array_equal(np.unique(made.labels), [0, 1, 2, 3])
        assert np.array_equal(np.diag(made.affine), [SPACING, SPACING, SPACING, 1])
        litres = [(made.labels == value).sum() * SPACING**3 / 1e6 for value in TISSUES.values()]
        assert 0.6 < litres[0] < 1.6
        assert 0.35 < litres[1] < 1.0
        assert 0.02 < litres[2] < 0.4


def test_default_grid_is_divisible_by_sixteen():
    assert [len(axis) for axis in cohort.axis_points(2.0)] == [96, 112, 96]


def test_nothing_folds(subjects):
    least = [cohort.warp(np.random.default_rng(seed), SPACING)[1] for seed in range(10)]
    assert min(least + [made.facts.minimum_jacobian for made in subjects]) > 0
    assert max(least) < 1  # somewhere every subject is compressed: the warp is not the identity


def test_integration_solves_the_flow_of_a_linear_field():
    shape = (25, 25, 25)
    points = (np.indices(shape) - 12.0) * cohort.NODE_MM
    matrix = np.array([[0.05, -0.2, 0.1], [0.2, -0.1, 0.0], [0.0, 0.1, 0.05]])
    found = points + cohort.integrate(np.tensordot(matrix, points, axes=1))
    exact = np.tensordot(expm(matrix), points, axes=1)
    inner = (slice(None), *[slice(7, -7)] * 3)
    assert np.abs(found - exact)[inner].max() < 0.1
    assert np.abs(points - exact)[inner].max() > 3


def test_jacobian_of_a_linear_map_is_its_determinant():
    matrix = np.array([[1.1, 0.2, 0.0], [-0.1, 0.9, 0.3], [0.0, 0.1, 1.2]])
    points = np.tensordot(matrix, np.indices((4, 5, 6)) * 3.0, axes=1)
    assert np.allclose(cohort.jacobian(points, 3.0), np.linalg.det(matrix))


def test_a_drawn_affine_is_near_the_identity():
    for seed in range(20):
        matrix, shift = cohort.draw_affine(np.random.default_rng(seed))
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert 0.919 < singular.min() <= singular.max() < 1.101
        assert np.linalg.det(matrix) > 0
        assert np.abs(shift).max() <= 5


def test_upsample_keeps_nodes_and_reproduces_cubics():
    x = np.arange(6.0)
    coarse = np.broadcast_to((x**3 - x)[:, None, None], (6, 5, 4)).astype(np.float32)
    fine = np.linspace(0, 5, 11)
    found = cohort.upsample(coarse, [fine, np.arange(5), np.arange(4)])
    assert np.allclose(found, (fine**3 - fine)[:, None, None], atol=1e-3)


@pytest.mark.parametrize(("tissue", "least"), [("grey", 0.95), ("white", 0.95), ("fluid", 0.85)])
def test_labels_move_with_the_image(template, tissue, least):
    """An image made equal to one tissue of the label map moves as the labels do; fluid is often one voxel thin."""
    still = cohort.tissue_labels(*template.maps[1:])
    maps = np.concatenate([(still == TISSUES[tissue])[None].astype(np.float32), template.maps[1:]])
    points, _ = cohort.warp(np.random.default_rng(5), SPACING)
    centre = template.centre[:, None, None, None]
    image, *probabilities = cohort.resample(maps, points + centre)
    labels = cohort.tissue_labels(*probabilities)
    assert dice(image > 0.5, labels == TISSUES[tissue]) > least
    identity = np.stack(np.meshgrid(*cohort.axis_points(SPACING), indexing="ij"))
    assert dice(cohort.resample(maps, identity + centre)[0] > 0.5, labels == TISSUES[tissue]) < 0.8


def test_the_brain_has_no_holes(template):
    brain = template.maps[1] > 0
    assert np.array_equal(np.asarray(binary_fill_holes(brain)), brain)


def test_fluid_is_brain_that_is_neither_grey_nor_white():
    brain = np.array([0.0, 1.0, 1.0, 1.0, 0.4, 1.0])
    grey = np.array([0.0, 0.8, 0.1, 0.1, 0.3, 0.3])
    white = np.array([0.0, 0.1, 0.8, 0.1, 0.1, 0.3])
    assert cohort.tissue_labels(brain, grey, white).tolist() == [0, 1, 2, 3, 0, 3]


def test_families_order_the_tissues_differently(subjects):
    order = {"A": ["fluid", "grey", "white"], "B": ["white", "grey", "fluid"], "C": ["fluid", "white", "grey"]}
    assert {made.facts.site for made in subjects} == set(order)
    for made in subjects:
        median = {name: np.median(made.image[made.labels == value]) for name, value in TISSUES.items()}
        assert sorted(median, key=lambda name: median[name]) == order[made.facts.site]


def test_intensity_alone_does_not_give_the_tissue(subjects):
    """The best cut between grey and white, on images scaled to their brain's mean and spread."""

    def accuracy(chosen) -> float:
        scaled = []
        for made in chosen:
            brain = made.image[made.labels > 0].astype(float)
            scaled.append(((brain - brain.mean()) / brain.std(), made.labels[made.labels > 0]))
        values, labels = (np.concatenate(parts) for parts in zip(*scaled, strict=True))
        values, white = values[labels < 3], labels[labels < 3] == 2
        found = [np.mean((values > cut) == white) for cut in np.linspace(-2, 2, 81)]
        return max(*found, 1 - min(found))

    only = [accuracy([made]) for made in subjects]
    assert np.mean(only) > accuracy(subjects) + 0.05
    assert accuracy(subjects) < 0.8


def test_bias_field_is_a_cubic_with_the_spread_asked_for():
    field = np.log(cohort.bias_field((40, 30, 20), 0.2, np.random.default_rng(0)))
    assert abs(field.mean()) < 1e-4
    assert abs(field.std() - 0.2) < 1e-4
    for axis in range(3):
        assert np.abs(np.diff(field, n=4, axis=axis)).max() < 1e-4
        assert np.abs(np.diff(field, axis=axis)).max() > 0.01


def test_rician_noise_has_its_textbook_moments():
    random = np.random.default_rng(0)
    air = cohort.rician(np.zeros((50, 50, 50), np.float32), 2.0, random)
    tissue = cohort.rician(np.full((50, 50, 50), 100, np.float32), 2.0, random)
    assert abs(air.mean() / (2 * np.sqrt(np.pi / 2)) - 1) < 0.01
    assert abs((tissue**2).mean() / (100**2 + 2 * 2**2) - 1) < 0.001
    assert abs(tissue.std() / 2 - 1) < 0.02


def test_thick_slices_blur_one_axis_only():
    point = np.zeros((21, 21, 21), np.float32)
    point[10, 10, 10] = 1
    blurred = cohort.thicken(point, 3.0, 1)
    profile = blurred[10, :, 10]
    assert np.isclose(profile.sum(), 1, atol=1e-4)
    assert np.isclose((profile * (np.arange(21) - 10) ** 2).sum(), 8 / 2.355**2, rtol=0.02)


def test_cohort_on_disk(written, subjects):
    rows = rows_of(written)
    assert list(rows[0]) == ["image", "mask", "patient", "site", "split", "modality"]
    assert [row["patient"] for row in rows] == ["synthetic_000", "synthetic_001", "synthetic_002"]
    assert [row["split"] for row in rows] == ["train", "train", "test"]
    for row, made in zip(rows, subjects[:3], strict=True):
        assert row["site"] == made.facts.site
        mask = nibabel.nifti1.load(written / row["mask"])
        assert np.array_equal(np.asarray(mask.dataobj), made.labels)
        assert np.allclose(mask.affine, made.affine)
    image = nibabel.nifti1.load(written / rows[1]["image"])
    assert np.array_equal(np.asarray(image.dataobj), subjects[1].image)
    assert image.get_data_dtype() == np.int16
    assert image.header["descrip"].item() == b"synthetic"
    assert image.header["db_name"].item() == image.header["intent_name"].item() == b""
    assert not [path for path in written.rglob("*") if "partial" in path.name]


def test_series_holds_the_voxels_of_the_nifti_file(written, subjects):
    """Rebuilt as a reader would: order by position along the normal, then from DICOM's axes to RAS."""
    folder = written / rows_of(written)[2]["image"]
    files = sorted(folder.iterdir())
    slices = [pydicom.dcmread(file) for file in files]
    heights = [float(one.ImagePositionPatient[2]) for one in slices]
    assert heights != sorted(heights)
    slices = [slices[place] for place in np.argsort(heights)]
    first, second = slices[:2]
    row, column = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    to_world = np.eye(4)  # PS3.3 C.7.6.2.1.1: pixel (column, row, slice) -> LPS
    to_world[:3, 0] = row * first.PixelSpacing[1]
    to_world[:3, 1] = column * first.PixelSpacing[0]
    to_world[:3, 2] = np.subtract(second.ImagePositionPatient, first.ImagePositionPatient)
    to_world[:3, 3] = first.ImagePositionPatient
    pixels = np.stack([one.pixel_array for one in slices]).transpose(2, 1, 0)
    stored = nibabel.nifti1.Nifti1Image(pixels, np.diag([-1, -1, 1, 1]) @ to_world)
    volume = nibabel.funcs.as_closest_canonical(stored)
    assert np.array_equal(np.asarray(volume.dataobj), subjects[2].image)
    assert np.allclose(np.asarray(volume.affine), subjects[2].affine)


def test_series_is_one_series_of_one_invented_patient(written):
    slices = [pydicom.dcmread(file) for file in (written / "images" / "synthetic_002").iterdir()]
    assert {str(one.PatientName) for one in slices} == {"SYNTHETIC^002"}
    assert len({one.SeriesInstanceUID for one in slices}) == len({one.StudyInstanceUID for one in slices}) == 1
    assert len({one.SOPInstanceUID for one in slices}) == len(slices) == 48
    for one in slices:
        pydicom.dataset.validate_file_meta(one.file_meta, enforce_standard=True)
        assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
        assert one.SpacingBetweenSlices == one.SliceThickness == SPACING


def test_writing_again_fills_the_gaps_only(written, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(written, folder)
    whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    kept = folder / "images" / "synthetic_000.nii.gz"
    kept.write_bytes(b"kept")
    (folder / "labels" / "synthetic_001.nii.gz").unlink()
    shutil.rmtree(folder / "images" / "synthetic_002")
    (folder / "images" / ".synthetic_002.partial").mkdir()  # as an interrupted run leaves it
    samples.write_cohort(folder, subjects=3, seed=0, spacing_mm=SPACING)
    assert kept.read_bytes() == b"kept"
    kept.write_bytes(whole[kept.relative_to(folder)])
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole


def test_without_dicom_all_images_are_nifti(tmp_path):
    samples.write_cohort(tmp_path, subjects=1, spacing_mm=SPACING, dicom=False)
    assert (tmp_path / rows_of(tmp_path)[0]["image"]).is_file()


def test_splits_are_shares_of_subjects_and_do_not_move():
    splits = [samples.SPLITS[number % len(samples.SPLITS)] for number in range(100)]
    assert [splits.count(name) for name in ("train", "val", "test")] == [70, 10, 20]
    assert set(splits[:6]) == {"train", "val", "test"}


def test_another_cohort_in_the_folder_is_refused(written):
    with pytest.raises(UserError, match="choose another folder"):
        samples.write_cohort(written, subjects=3, seed=1, spacing_mm=SPACING)
    assert json.loads((written / "cohort.json").read_text())["seed"] == 0


@pytest.mark.parametrize("wrong", [{"subjects": 0}, {"subjects": 1, "seed": -1}, {"subjects": 1, "spacing_mm": 0.5}])
def test_arguments_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="1 subject or more"):
        samples.write_cohort(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_missing_nilearn_is_explained(monkeypatch):
    monkeypatch.setattr(cohort, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'python -m pip install "ssl_med\[demo\]"'):
        cohort.load_template.__wrapped__()


def test_examples_are_real_files_that_decode(tmp_path):
    expected = {"ct": "CT", "mr": "MR", "mr_abdomen": "MR", "us": "US", "us_palette": "US", "us_cine": "US"}
    assert set(samples.pydicom_examples()) == set(expected)
    samples.write_examples(tmp_path)
    for name, modality in expected.items():
        dataset = pydicom.dcmread(tmp_path / f"{name}.dcm")
        assert dataset.Modality == modality
        assert dataset.pixel_array.std() > 0
        assert min(dataset.Rows, dataset.Columns) >= 64


def test_facts_tell_what_was_drawn(subjects):
    for made in subjects:
        facts = dataclasses.asdict(made.facts)
        assert 0.05 <= facts["bias"] <= 0.25
        assert 0.01 <= facts["noise"] <= 0.06
        assert SPACING <= facts["slice_mm"] <= 3 * SPACING
