"""Every layout of the field is understood as it is, printed in words, and folders of patients never become classes."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dicom_files import PIXELS, at, dicom_slice, multiframe, saved, saved_all
from PIL import Image as Pillow
from stores import store_of

from ssl_med.cli import main
from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.layouts import expand
from ssl_med.data.layouts.classes import looks_like_a_patient
from ssl_med.data.layouts.masks import masks_beside
from ssl_med.data.readers import read, read_mask
from ssl_med.data.record import Record, Unreadable
from ssl_med.errors import UserError


def picture(path: Path, value: int = 1, size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size) + np.uint8(value)
    Pillow.fromarray(array).save(path)
    return path


def scan(path: Path, value: int = 0, shape: tuple[int, ...] = (3, 4, 5), affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) + np.int16(value)
    nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def found(folder: Path, **options) -> dict[str, Record]:
    return {record.name: record for record in find_images(folder, **options)}


def pictures_in(folder: Path, names: tuple[str, ...], count: int = 3) -> Path:
    for name in names:
        for number in range(count):
            picture(folder / name / f"{name[:2]}-{'abcdefghij'[number]}.png", number)
    return folder


# --- classes or patients

PEOPLE = [
    ("Valjean_Jean", "Javert_Inspector", "Cosette_Fauchelevent"),
    ("Valjean", "Javert", "Cosette"),
    ("0001", "0002", "0003"),
    ("20190823", "20190901"),
    ("patient1", "patient2"),
    ("HN-CHUM-001", "HN-CHUM-002"),
    ("Doe^John", "Doe^Jane"),
    ("1", "2", "3"),
    tuple(f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
]
CLASSES = [
    ("normal", "pneumonia"),
    ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"),
    ("glioma", "meningioma", "notumor", "pituitary"),
    ("0", "1", "2", "3", "4"),
    ("COVID", "Normal", "Viral Pneumonia"),
    ("Invasive_Ductal_Carcinoma", "Benign"),
]


@pytest.mark.parametrize("names", PEOPLE)
def test_folders_of_patients_are_no_classes(tmp_path, names):
    records = list(find_images(pictures_in(tmp_path, names)))
    layout = describe_layout(tmp_path)
    assert layout.class_names == ()
    assert {record.label for record in records} == {-1}
    assert {record.patient for record in records} == set(names)
    assert f"{len(names)} folders understood as patients" in layout.name
    assert any("--layout imagefolder" in note for note in layout.notes)
    told = layout.name + " ".join(layout.notes)
    assert not [name for name in names if len(name) > 3 and name in told]


@pytest.mark.parametrize("names", CLASSES)
def test_words_of_medicine_are_classes(tmp_path, names):
    records = list(find_images(pictures_in(tmp_path, names)))
    assert describe_layout(tmp_path).class_names == tuple(sorted(names))
    assert {record.label for record in records} == set(range(len(names)))
    assert {record.patient for record in records} == {""}


def test_many_folders_for_few_images_are_patients_whatever_their_names(tmp_path):
    pictures_in(tmp_path, ("normal", "benign", "malignant", "tumor"), count=1)
    assert describe_layout(tmp_path).class_names == ()


def test_names_that_come_back_under_each_split_are_classes_but_never_identifiers(tmp_path):
    for split in ("train", "test"):
        pictures_in(tmp_path / "words" / split, ("one", "two"))
        pictures_in(tmp_path / "ids" / split, ("PID7734501", "PID7734502"))
        pictures_in(tmp_path / "apart" / split, (f"{split}left", f"{split}over"))
    assert describe_layout(tmp_path / "words").class_names == ("one", "two")
    assert describe_layout(tmp_path / "ids").class_names == ()
    assert describe_layout(tmp_path / "apart").class_names == ()


def test_a_folder_called_patients_settles_it(tmp_path):
    pictures_in(tmp_path / "patients", ("normal", "pneumonia"))
    assert describe_layout(tmp_path).class_names == ()
    assert {record.patient for record in find_images(tmp_path)} == {"normal", "pneumonia"}


def test_a_person_can_say_what_folders_are(tmp_path):
    pictures_in(tmp_path, ("Valjean", "Javert"))
    assert describe_layout(tmp_path, layout="imagefolder").class_names == ("Javert", "Valjean")
    assert {record.label for record in find_images(tmp_path, layout="imagefolder")} == {0, 1}
    assert {record.patient for record in find_images(tmp_path, layout="tree")} == {""}
    pictures_in(tmp_path / "more", ("normal", "benign"))
    assert describe_layout(tmp_path / "more", layout="patients").class_names == ()
    with pytest.raises(UserError, match="expected a folder for each class"):
        find_images(picture(tmp_path / "flat" / "a.png").parent, layout="imagefolder")
    with pytest.raises(UserError, match="beside a manifest or columns"):
        find_images(tmp_path, columns={"label": "x"}, layout="tree")


def test_patients_below_classes_and_below_splits(tmp_path):
    for place in ("benign/SOB_14_22549/x", "malignant/SOB_14_9133/y", "malignant/SOB_14_9133/z"):
        picture(tmp_path / "classes" / f"{place}.png")
    records = found(tmp_path / "classes")
    assert records["malignant/SOB_14_9133/z.png"].patient == "SOB_14_9133"
    assert records["malignant/SOB_14_9133/z.png"].label == 1
    for place in ("train/A.Smith/s1/x", "train/A.Smith/s2/y", "test/B.Jones/s1/x"):
        scan(tmp_path / "patients" / f"{place}.nii.gz")
    assert [(r.patient, r.split) for r in find_images(tmp_path / "patients")] == [
        ("B.Jones", "test"),
        ("A.Smith", "train"),
        ("A.Smith", "train"),
    ]


def test_volumes_in_class_folders_are_no_patients_and_wait_to_be_asked(tmp_path):
    for name in ("normal", "tumor"):
        for number in range(3):
            scan(tmp_path / name / f"{number}.nii.gz")
    assert {(record.label, record.patient) for record in find_images(tmp_path)} == {(-1, "")}
    assert describe_layout(tmp_path, layout="imagefolder").class_names == ("normal", "tumor")


@pytest.mark.parametrize("name", ["Valjean_Jean", "19310417", "1931-04-17", "PID-7734501", "sub-01", "case 12", "a^b"])
def test_names_of_patients_are_known(name):
    assert looks_like_a_patient(name)


@pytest.mark.parametrize("name", ["normal", "Benign", "No_Tumor", "Squamous Cell Carcinoma", "grade 3", "pathology1"])
def test_names_of_classes_are_no_patients(name):
    assert not looks_like_a_patient(name)


def test_the_command_line_says_it_too(tmp_path, capsys):
    pictures_in(tmp_path / "in", ("Valjean", "Javert"))
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out
    assert "2 folders understood as patients" in said
    assert "--layout imagefolder" in said
    assert "Javert" not in said
    assert b"Javert" not in (tmp_path / "store" / "store.json").read_bytes()
    assert main(["inspect", str(tmp_path / "in"), "--layout", "imagefolder"]) == 0
    assert "0 Javert: 3" in capsys.readouterr().out


# --- masks


def test_masks_beside_their_images(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    for name in ("a_mask", "a_mask_1", "b-seg", "lonely_mask"):
        picture(tmp_path / f"{name}.png")
    records = found(tmp_path)
    assert {name: record.mask and record.mask.name for name, record in records.items()} == {
        "a.png": "a_mask.png",
        "b.png": "b-seg.png",
        "c.png": None,
        "lonely_mask.png": None,
    }
    assert describe_layout(tmp_path).name == "tree of raster images, 3 masks"


def test_one_mask_of_several_contrasts():
    paths = [Path(f"BraTS_001_{word}.nii.gz") for word in ("flair", "seg", "t1")]
    masks, files = masks_beside(paths)
    assert masks == {paths[0]: paths[1], paths[2]: paths[1]}
    assert files == {paths[1]}


def test_masks_of_another_name_in_a_folder_beside(tmp_path):
    picture(tmp_path / "images" / "x.png")
    picture(tmp_path / "masks" / "x_mask.png")
    (record,) = find_images(tmp_path)
    assert record.mask == tmp_path / "masks" / "x_mask.png"


# --- dataset.json


def nnunet(folder: Path, channels: dict[str, str], labels: dict) -> Path:
    for case in ("a_001", "b_002"):
        for number in range(len(channels)):
            scan(folder / "imagesTr" / f"{case}_{number:04d}.nii.gz", value=100 * number)
        scan(folder / "labelsTr" / f"{case}.nii.gz")
    scan(folder / "imagesTs" / "c_003_0000.nii.gz")
    facts = {"channel_names": channels, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def test_nnunet_channels_become_one_image(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "edema": 1}
    nnunet(tmp_path, {"0": "T1", "1": "FLAIR"}, labels)
    first, second, test = find_images(tmp_path)
    assert (first.reader, first.name, first.modality) == ("stack", "imagesTr/a_001_0000.nii.gz", "MR")
    assert [path.name[-9:-7] for path in second.files] == ["00", "01"]
    assert first.mask == tmp_path / "labelsTr" / "a_001.nii.gz"
    image = read(first)
    assert image.array.shape == (2, 5, 4, 3)
    assert (image.array[1] - image.array[0] == 100).all()
    assert read_mask(first, image) is not None
    layout = describe_layout(tmp_path)
    assert layout.mask_names == {0: "background", 1: "edema", 2: "core"}
    assert "whole = 1 + 2" in layout.notes[0]
    assert layout.name == "MSD or nnU-Net folder: imagesTr, 2 masks, 2 channels"
    with pytest.raises(Unreadable, match="file is missing"):  # the second channel of c_003
        read(test)


def test_nnunet_with_one_channel_and_ct(tmp_path):
    nnunet(tmp_path, {"0": "CT"}, {"background": 0, "liver": 1})
    assert {(record.reader, record.modality) for record in find_images(tmp_path)} == {("nifti", "CT")}


def test_numbers_of_test_images_are_no_channels_where_training_says_so(tmp_path):
    for number in range(2):
        scan(tmp_path / "imagesTr" / f"lung_{number:04d}.nii.gz")
        scan(tmp_path / "labelsTr" / f"lung_{number:04d}.nii.gz")
        scan(tmp_path / "imagesTs" / f"lung_{number:04d}.nii.gz")
    assert [record.reader for record in find_images(tmp_path)] == ["nifti"] * 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": (3, 4, 6)}, "channel 1: shape"),
        ({"affine": np.diag([1.0, 1.0, 1.5, 1.0])}, "channel 1: affine differs"),
    ],
)
def test_channels_on_other_grids_are_refused(tmp_path, change, reason):
    nnunet(tmp_path, {"0": "T1", "1": "T2"}, {})
    scan(tmp_path / "imagesTr" / "a_001_0001.nii.gz", **change)
    with pytest.raises(Unreadable, match=reason):
        read(next(find_images(tmp_path)))


def test_a_broken_channel_says_which(tmp_path):
    nnunet(tmp_path, {"0": "T1", "1": "T2"}, {})
    (tmp_path / "imagesTr" / "a_001_0001.nii.gz").write_bytes(b"<html>")
    with pytest.raises(Unreadable, match="channel 1: not a NIfTI file"):
        read(next(find_images(tmp_path)))


def test_msd_labels(tmp_path):
    scan(tmp_path / "imagesTr" / "h_001.nii.gz"), scan(tmp_path / "labelsTr" / "h_001.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "Anterior"}}))
    assert describe_layout(tmp_path).mask_names == {0: "background", 1: "Anterior"}
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        find_images(tmp_path)


# --- datalist


@pytest.fixture
def listed(tmp_path):
    for name in ("a", "b", "c"):
        scan(tmp_path / "scans" / f"{name}.nii.gz"), scan(tmp_path / "truth" / f"{name}.nii.gz")
    content = {
        "training": [{"image": "scans/a.nii.gz", "label": "truth/a.nii.gz", "fold": 0}],
        "validation": [{"image": ["scans/b.nii.gz", "scans/c.nii.gz"], "label": 2, "patient": "p"}],
        "test": ["scans/c.nii.gz"],
    }
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path


def test_monai_datalist(listed):
    first, second, third = find_images(listed)
    assert (first.split, first.mask, first.label) == ("train", listed / "truth" / "a.nii.gz", -1)
    assert (second.split, second.reader, second.label, second.patient) == ("val", "stack", 2, "p")
    assert (third.split, third.name) == ("test", "scans/c.nii.gz")
    assert describe_layout(listed).name == "MONAI datalist list.json: 1 training, 1 validation, 1 test"
    assert len(list(find_images(listed / "scans", manifest=listed / "list.json"))) == 3  # relative to the file


def test_datalists_that_say_nothing_sensible(listed):
    (listed / "bad.json").write_text(json.dumps({"training": [{"image": "scans/a.nii.gz", "label": 0.5}]}))
    with pytest.raises(UserError, match=r"entry 0 of training: label is 0\.5"):
        list(find_images(listed, manifest=Path("bad.json")))
    (listed / "other.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="holds no list of images"):
        find_images(listed, manifest=listed / "other.json")
    assert len(found(listed)) == 3 * 2  # two datalists: neither is used


# --- BIDS


@pytest.fixture
def bids(tmp_path):
    for subject in ("01", "02"):
        scan(tmp_path / f"sub-{subject}" / "ses-1" / "anat" / f"sub-{subject}_ses-1_T1w.nii.gz")
        scan(tmp_path / f"sub-{subject}" / "ses-1" / "anat" / f"sub-{subject}_ses-1_T2w.nii.gz")
    place = tmp_path / "derivatives" / "manual" / "sub-01" / "ses-1" / "anat"
    scan(place / "sub-01_ses-1_desc-lesion_dseg.nii.gz")
    scan(place / "sub-01_ses-1_space-MNI152_dseg.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tsite\tgroup\nsub-01\tA\tpatient\nsub-02\tB\tcontrol\n")
    return tmp_path


def test_bids(bids):
    records = found(bids)
    assert next(iter(records)) == "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert len(records) == 4
    first, other, second, _ = records.values()
    assert (first.patient, first.study, first.site, first.modality) == ("sub-01", "ses-1", "A", "MR")
    assert first.mask is not None
    assert first.mask.name == "sub-01_ses-1_desc-lesion_dseg.nii.gz"
    assert (other.mask, second.mask, second.site) == (None, None, "B")
    layout = describe_layout(bids)
    assert layout.name == "BIDS, 2 masks in derivatives"
    assert "participants.tsv has group" in layout.notes[0]


def test_bids_labels_on_request(bids):
    assert [record.label for record in find_images(bids, columns={"label": "group"})] == [1, 1, 0, 0]
    assert describe_layout(bids, columns={"label": "group"}).class_names == ("control", "patient")
    with pytest.raises(UserError, match="no column 'diagnosis'"):
        find_images(bids, columns={"label": "diagnosis"})
    with pytest.raises(UserError, match="only label, site, labels"):
        find_images(bids, columns={"patient": "group"})


# --- tables


def test_parquet_manifest_reads_as_csv_does(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.png")
    columns = {"file": ["a.png", "b.png"], "patient_id": [7, 8], "label": [1.0, None], "split": ["train", "dev"]}
    pq.write_table(pa.table(columns), tmp_path / "index.parquet")
    lines = ["file,patient_id,label,split", "a.png,7,1.0,train", "b.png,8,,dev"]
    (tmp_path / "same.csv").write_text("\n".join(lines))
    first = list(find_images(tmp_path, manifest=tmp_path / "index.parquet"))
    assert first == list(find_images(tmp_path, manifest=tmp_path / "same.csv"))
    assert [(r.patient, r.label, r.split) for r in first] == [("7", 1, "train"), ("8", -1, "val")]
    (tmp_path / "same.csv").unlink()
    assert list(find_images(tmp_path)) == first
    (tmp_path / "index.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="is no parquet file"):
        find_images(tmp_path, manifest=tmp_path / "index.parquet")


def test_a_label_column_of_many_words_is_no_class(tmp_path):
    picture(tmp_path / "a.png")
    lines = ["file,label", *(f"{n}.png,word {n}" for n in range(10_002))]
    (tmp_path / "t.csv").write_text("\n".join(lines).replace("0.png", "a.png", 1))
    with pytest.raises(UserError, match="more than 10000 different words"):
        find_images(tmp_path)


# --- clips


def test_folders_of_numbered_frames_are_clips(tmp_path):
    for clip in ("x", "y"):
        for number in range(1, 12):
            picture(tmp_path / clip / f"frame{number}.png", number)
    first, second = find_images(tmp_path)
    assert (first.reader, len(first.files), first.patient) == ("frames", 11, "x")
    assert [path.stem for path in second.files[:3]] == ["frame1", "frame2", "frame3"]
    assert read(first).array.shape == (1, 11, 6, 5)
    assert "2 folders of numbered frames understood as clips" in describe_layout(tmp_path).name
    assert len(found(tmp_path, layout="patients")) == 22


def test_numbered_pictures_are_no_clip(tmp_path):
    for number in range(12):
        picture(tmp_path / "images" / f"{number:03d}.png", number)
        picture(tmp_path / "masks" / f"{number:03d}.png", number)
    assert {record.reader for record in find_images(tmp_path)} == {"raster"}
    pictures = tmp_path / "flat"
    for number in range(12):
        picture(pictures / f"{number:03d}.png", number)
    assert len(found(pictures)) == 12
    assert len(found(pictures, layout="frames")) == 1


# --- files outside the folder, and DICOM files


def test_files_outside_the_folder_keep_their_whole_path(tmp_path):
    files = [picture(tmp_path / place / "a.png") for place in ("one", "two")]
    table = tmp_path / "in" / "table.csv"
    table.parent.mkdir()
    table.write_text("\n".join(["file", *map(str, files)]))
    assert list(found(table.parent, manifest=table)) == [file.as_posix() for file in files]


def test_a_table_that_names_dicom_files_leaves_patient_and_study_to_their_headers(tmp_path):
    (tmp_path / "series").mkdir()
    saved_all(tmp_path / "series", [dicom_slice(n, PIXELS[n]) for n in range(3)])
    saved(tmp_path / "one.dcm", dicom_slice(0, PIXELS[0], PatientID="P8"))
    frames = [at(z, FrameContentSequence={"StackID": stack}) for z, stack in ((0, "1"), (1, "1"), (0, "2"), (1, "2"))]
    saved(tmp_path / "two.dcm", multiframe(frames, PIXELS[:4], PatientID="P9"))
    (tmp_path / "table.csv").write_text("file,patient\none.dcm,\nseries,\ntwo.dcm,Q\n")
    records = found(tmp_path)
    assert {name: (r.patient, r.study, r.modality) for name, r in records.items()} == {
        "one.dcm": ("P8", "1.1", "CT"),
        "series": ("P7", "1.1", "CT"),
        "two.dcm#0": ("Q", "1.1", "CT"),
        "two.dcm#1": ("Q", "1.1", "CT"),
    }


def test_a_flat_folder_of_many_dicom_files_is_one_group(tmp_path, monkeypatch):
    monkeypatch.setattr(expand, "GROUPED_TOGETHER", 2)
    saved_all(tmp_path, [dicom_slice(n, PIXELS[n]) for n in range(4)])
    assert [len(record.files) for record in find_images(tmp_path)] == [4]


# --- the order of the file system


def backwards(monkeypatch) -> None:
    """File systems list a folder in any order; this one in another."""
    walk, iterdir, glob = os.walk, Path.iterdir, Path.glob

    def walked(*arguments, **options):
        for place, below, names in walk(*arguments, **options):
            below.reverse()
            yield place, below, names[::-1]

    monkeypatch.setattr(os, "walk", walked)
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(iterdir(path), reverse=True)))
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(sorted(glob(path, pattern), reverse=True)))


def classes(folder: Path) -> None:
    pictures_in(folder, ("normal", "pneumonia"))


def patients(folder: Path) -> None:
    for name in ("A.Smith/s1", "A.Smith/s2", "B.Jones/s1"):
        for number in range(3):
            scan(folder / name / f"{number}.nii.gz", number)


def dicom(folder: Path) -> None:
    for name, series in (("a", "1.2.3"), ("b", "1.2.4")):
        (folder / name).mkdir(parents=True)
        saved_all(folder / name, [dicom_slice(level, PIXELS, SeriesInstanceUID=series) for level in range(4)])


def channels(folder: Path) -> None:
    """One image for training has a mask of its own name, the other has none: which of them settles the layout."""
    for part in ("imagesTr", "imagesTs"):
        for number in (0, 1):
            scan(folder / part / f"case_000{number}.nii.gz", number)
    scan(folder / "labelsTr" / "case_0000.nii.gz")


@pytest.mark.parametrize("write", [classes, patients, dicom, channels])
def test_the_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch, write):
    write(tmp_path / "in")
    expected, layout = list(find_images(tmp_path / "in")), describe_layout(tmp_path / "in")
    backwards(monkeypatch)
    assert list(find_images(tmp_path / "in")) == expected
    assert len(expected) > 1
    assert describe_layout(tmp_path / "in") == layout


def test_a_store_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    patients(tmp_path / "in")
    monkeypatch.setattr("ssl_med.data.journal.secrets.token_bytes", bytes)  # the same key for both
    first = store_of(tmp_path / "in", tmp_path / "first")
    backwards(monkeypatch)
    second = store_of(tmp_path / "in", tmp_path / "second")
    assert len(first) == 9
    assert list(second.rows) == list(first.rows)
    assert second.facts["fingerprint"] == first.facts["fingerprint"]
