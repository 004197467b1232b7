"""Sample data without a download: a cohort of synthetic subjects, and the real DICOM files inside pydicom.

A cohort is what a hospital would hand over: images (NIfTI and one DICOM series), voxel labels on the same grids, three
sites with different contrasts, and a manifest with a split by patient. :mod:`ssl_med.data.cohort` makes the subjects.
"""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom.data
from nibabel import nifti1
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from ssl_med.data.cohort import Subject, load_template, site_of, subject
from ssl_med.errors import UserError

COLUMNS: tuple[str, ...] = ("image", "mask", "patient", "site", "split", "modality")
_EMPTY = (
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    *("PositionReferenceIndicator", "ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "Laterality"),
)
SPLITS = ("train", "train", "test", "train", "train", "val", "train", "test", "train", "train")  # repeated: 70/10/20 %
LAW = 1  # raise it when a change of cohort.py gives other voxels, so that no folder mixes the two

EXAMPLES = {  # one of a kind each; pydicom's other copies differ in encoding only, its radiographs have 16 x 16 pixels
    "ct": "CT_small.dcm",
    "mr": "MR_small.dcm",
    "mr_abdomen": "examples_overlay.dcm",
    "us": "examples_rgb_color.dcm",
    "us_palette": "examples_palette.dcm",
    "us_cine": "examples_ybr_color.dcm",
}


def write_cohort(out: Path, subjects: int, seed: int = 0, spacing_mm: float = 2.0, dicom: bool = True) -> Path:
    """Write a cohort of synthetic subjects; files that are already there are kept, so it can be resumed.

    Args:
        out: folder for ``images/``, ``labels/``, ``manifest.csv`` and ``cohort.json`` (these arguments).
        subjects: how many; a subject does not depend on it.
        seed: of the cohort, 0 or more.
        spacing_mm: voxel size along every axis, 1 to 8.
        dicom: write the last subject's image as a DICOM series, the folder ``images/synthetic_NNN``.

    Returns:
        ``out``.

    Raises:
        UserError: an argument out of range, nilearn missing, or another cohort lies in ``out``.
    """
    out = Path(out)
    if subjects < 1 or seed < 0 or not 1 <= spacing_mm <= 8:
        raise UserError(
            f"A cohort has 1 subject or more, a seed of 0 or more and 1 to 8 mm voxels; got subjects={subjects}, "
            f"seed={seed}, spacing_mm={spacing_mm}."
        )
    _claim(out, {"law": LAW, "subjects": subjects, "seed": seed, "spacing_mm": float(spacing_mm), "dicom": dicom})
    rows = [_row(seed, number, dicom and number == subjects - 1) for number in range(subjects)]
    for number, row in enumerate(rows):
        image, mask = out / row["image"], out / row["mask"]
        if not (image.exists() and mask.exists()):
            made = subject(load_template(), seed, number, spacing_mm)
            _write_image(image, made, number, seed)
            write_file(mask, nifti_bytes(made.labels, made.affine))
    write_file(out / "manifest.csv", _table(rows).encode())
    return out


def _claim(out: Path, arguments: dict[str, float]) -> None:
    """Note the arguments in a new folder; refuse a folder that was started with others."""
    note = out / "cohort.json"
    if not note.exists():
        write_file(note, json.dumps(arguments).encode())
    elif (earlier := json.loads(note.read_text())) != arguments:
        raise UserError(f"{out} holds a cohort made with {earlier}, not with {arguments}: choose another folder.")


def _row(seed: int, number: int, series: bool) -> dict[str, str]:
    """The manifest's line about a subject. Its split depends on its number alone, its site on (seed, number)."""
    name = f"synthetic_{number:03d}"
    image = f"images/{name}" if series else f"images/{name}.nii.gz"
    values = (image, f"labels/{name}.nii.gz", name, site_of(seed, number), SPLITS[number % len(SPLITS)], "MR")
    return dict(zip(COLUMNS, values, strict=True))


def _table(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _write_image(path: Path, made: Subject, number: int, seed: int) -> None:
    if path.suffix == ".gz":
        write_file(path, nifti_bytes(made.image, made.affine))
    elif not path.exists():
        write_series(path, made, number, seed)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    """A gzipped NIfTI-1 file in scanner coordinates with nothing in its header but geometry and ``synthetic``."""
    image = nifti1.Nifti1Image(array, affine)
    image.header["descrip"] = b"synthetic"
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)


def write_series(folder: Path, made: Subject, number: int, seed: int) -> None:
    """Write the image as one DICOM MR series, a file per slice, the files' order unlike the slices' order.

    The folder appears when all its files are there.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    slices = list(dicom_slices(made, number, seed))
    for place, chosen in enumerate(np.random.default_rng([seed, number]).permutation(len(slices))):
        slices[chosen].save_as(partial / f"{place:04d}.dcm", enforce_file_format=True)
    partial.rename(folder)


def dicom_slices(made: Subject, number: int, seed: int) -> Iterator[FileDataset]:
    """Axial slices from feet to head as MR datasets that any viewer opens.

    DICOM's patient axes point left, posterior and head (PS3.3 C.7.6.2): columns run to the left and rows to the back,
    so the first pixel is the voxel farthest to the right and front: in RAS that with the largest x and y index.
    """
    scan = f"ssl_med synthetic {seed} {number} {made.image.shape}"
    width, height = float(made.affine[0, 0]), float(made.affine[1, 1])
    for level in range(made.image.shape[2]):
        corner = made.affine @ [made.image.shape[0] - 1, made.image.shape[1] - 1, level, 1]
        dataset = _blank_slice(scan, level, number)
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [round(float(v), 6) for v in (-corner[0], -corner[1], corner[2])]
        dataset.PixelSpacing = [height, width]
        dataset.SliceThickness = dataset.SpacingBetweenSlices = float(made.affine[2, 2])
        pixels = np.ascontiguousarray(made.image[::-1, ::-1, level].T)
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = pixels.astype("<i2").tobytes()
        yield dataset


def _blank_slice(scan: str, level: int, number: int) -> FileDataset:
    """An MR slice without place or pixels; its UIDs are a function of the scan, so that a rewrite gives the same."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[scan, f"slice {level}"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[scan, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[scan, "series"])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[scan, "frame"])
    dataset.Modality, dataset.Manufacturer, dataset.SeriesDescription = "MR", "ssl_med", "synthetic"
    dataset.PatientName, dataset.PatientID = f"SYNTHETIC^{number:03d}", f"synthetic_{number:03d}"
    for empty in _EMPTY:  # type 2: they must be there and may be empty
        setattr(dataset, empty, None)
    dataset.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    dataset.ScanningSequence, dataset.SequenceVariant = "RM", "NONE"  # research mode
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, level + 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    return dataset


def pydicom_examples() -> dict[str, Path]:
    """The real CT, MR and ultrasound files that lie inside the pydicom package and decode with numpy and pillow.

    pydicom's readme knows of no restriction on them; its further files, which it would download, are not looked at.
    """
    folder = Path(pydicom.data.__path__[0]) / "test_files"
    return {name: folder / file for name, file in EXAMPLES.items() if (folder / file).is_file()}


def write_examples(out: Path) -> Path:
    """Copy pydicom's examples to ``out/<name>.dcm``; files that are already there are kept.

    Returns:
        ``out``.

    Raises:
        UserError: this pydicom was packed without its examples.
    """
    examples = pydicom_examples()
    if not examples:
        raise UserError("This pydicom came without its example files: python -m pip install --force-reinstall pydicom")
    for name, file in examples.items():
        target = Path(out) / f"{name}.dcm"
        if not target.exists():
            write_file(target, file.read_bytes())
    return Path(out)
