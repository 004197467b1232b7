"""Every layout of a data folder is understood without options, in a fixed order, and said in words."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom.data import get_testdata_file

from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.readers import read, read_mask
from ssl_med.data.record import Unreadable
from ssl_med.errors import UserError


def picture(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(30, dtype=np.uint8).reshape(6, 5) + np.uint8(value)
    Pillow.fromarray(array).save(path)
    return path


def scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_filename(path)
    return path


def table(path: Path, text: str) -> Path:
    path.write_text(text.replace(" ", ""))
    return path


def names(folder: Path, **options) -> list[str]:
    return [record.name for record in find_images(folder, **options)]


# --- tables


@pytest.fixture
def tabled(tmp_path):
    for name in ("b", "a", "c"):
        picture(tmp_path / "images" / f"{name}.png")
        picture(tmp_path / "masks" / f"{name}.png")
    table(
        tmp_path / "index.csv",
        """file,inferred_subject,patient_age,split,site,modality,study,class,pathology
        b.png,p1,63,training,x,CR,s1,sick,1
        a.png,p1,63,valid,x,CR,s1,healthy,0
        c.png,p2,70,extra,y,DX,s2,,1
        """,
    )
    return tmp_path


def test_the_only_table_is_understood(tabled):
    b, a, c = find_images(tabled)
    assert (b.name, b.patient, b.split, b.site, b.modality, b.study) == ("images/b.png", "p1", "train", "x", "CR", "s1")
    assert (b.label, a.label, c.label) == (1, 0, -1)  # sorted words: healthy, sick
    assert (a.split, c.split) == ("val", "extra")
    assert b.mask == tabled / "masks" / "b.png"
    layout = describe_layout(tabled)
    assert layout.class_names == ("healthy", "sick")
    assert "patient from `inferred_subject`" in layout.name


def test_columns_say_what_columns_mean(tabled):
    columns = {"image": "images/{file}", "mask": "", "patient": "{site}-{inferred_subject}", "label": "pathology"}
    b, a, c = find_images(tabled, columns=columns)
    assert (b.label, a.label, c.label, b.mask, c.patient) == (1, 0, 1, None, "y-p2")
    assert describe_layout(tabled, columns=columns).class_names == ()
    (only,) = find_images(tabled, table(tabled / "other.csv", "scan\nimages/a.png"), {"mask": "masks/{scan}"})
    assert only.name == "images/a.png"
    with pytest.raises(Unreadable, match="mask: file is missing"):
        read_mask(only)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"label": "patholgy"}, "index.csv has no column 'patholgy': did you mean 'pathology'"),
        ({"image": "images/{fil}"}, "no column 'fil': did you mean 'file'"),
        ({"lable": "pathology"}, "unknown field 'lable': did you mean 'label'"),
    ],
)
def test_unknown_columns_name_the_nearest(tabled, columns, sentence):
    with pytest.raises(UserError, match=sentence):
        list(find_images(tabled, columns=columns))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file\na.png\na.png", "line 3 lists a file a second time"),
        ("file,x\na.png,1\n,2", "line 3 has no file name"),
        ("file,label\na.png,0.5\nb.png,0.7", "holds numbers that are no classes"),
        ("file,label\na.png", "line 2: 1 values for 2 columns"),
        ("name\nnowhere", "no column of t.csv names image files"),
    ],
)
def test_bad_tables_say_where(tabled, text, sentence):
    with pytest.raises(UserError, match=sentence):
        list(find_images(tabled, table(tabled / "t.csv", text)))


def test_missing_things_are_told(tabled):
    with pytest.raises(UserError, match="does not exist"):
        find_images(tabled / "nowhere")
    with pytest.raises(UserError, match=r"manifest .* does not exist"):
        find_images(tabled, tabled / "nowhere.csv")
    (tabled / "images" / "a.png").unlink()
    with pytest.raises(Unreadable, match="file is missing"):
        read(list(find_images(tabled))[1])


def test_several_tables_are_a_choice(tabled):
    table(tabled / "second.csv", "file\na.png")
    layout = describe_layout(tabled)
    assert "choose one with manifest" in layout.notes[0]
    assert names(tabled) == ["images/a.png", "images/b.png", "images/c.png"]
    with pytest.raises(UserError, match="2 tables name images"):
        find_images(tabled, columns={"label": "pathology"})


def test_tables_that_name_no_images_are_left_alone(tmp_path):
    picture(tmp_path / "a.png")
    table(tmp_path / "ages.csv", "person,age\nx,3")
    (tmp_path / "notes.csv").write_bytes(b"a,b\n\xff\xfe,2")
    layout = describe_layout(tmp_path)
    assert names(tmp_path) == ["a.png"]
    assert layout.name == "tree of raster images"
    assert "notes.csv is not CSV in UTF-8" in layout.notes[0]


def test_a_label_column_of_files_is_the_mask(tmp_path):
    scan(tmp_path / "x" / "a.nii.gz"), scan(tmp_path / "y" / "a.nii.gz")
    table(tmp_path / "list.csv", "image,label\nx/a.nii.gz,y/a.nii.gz")
    (record,) = find_images(tmp_path)
    assert (record.mask, record.label) == (tmp_path / "y" / "a.nii.gz", -1)


# --- trees


def test_msd_folder(tmp_path):
    for place in ("imagesTr/case_001", "imagesTr/case_002", "labelsTr/case_001", "imagesTs/case_003"):
        scan(tmp_path / f"{place}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}}))
    first, second, test = find_images(tmp_path)
    assert first.mask == tmp_path / "labelsTr" / "case_001.nii.gz"
    assert (second.mask, test.mask) == (None, None)
    assert (first.split, test.split, first.modality) == ("train", "test", "MR")
    assert describe_layout(tmp_path).name.startswith("MSD or nnU-Net folder")


def test_nnunet_folder(tmp_path):
    scan(tmp_path / "imagesTr" / "case_0000.nii.gz")
    scan(tmp_path / "labelsTr" / "case.nii.gz")
    (record,) = find_images(tmp_path)
    assert record.mask == tmp_path / "labelsTr" / "case.nii.gz"
    scan(tmp_path / "imagesTr" / "case_0001.nii.gz")
    (record,) = find_images(tmp_path)
    assert (record.reader, [path.name for path in record.files]) == ("stack", ["case_0000.nii.gz", "case_0001.nii.gz"])
    assert record.mask == tmp_path / "labelsTr" / "case.nii.gz"


def test_four_digit_cases_with_their_own_masks_are_no_channels(tmp_path):
    for number in range(2):
        scan(tmp_path / "imagesTr" / f"lung_000{number}.nii.gz")
        scan(tmp_path / "labelsTr" / f"lung_000{number}.nii.gz")
    assert [record.mask.name for record in find_images(tmp_path) if record.mask] == [
        "lung_0000.nii.gz",
        "lung_0001.nii.gz",
    ]


def test_plain_tree_finds_masks_and_counts_what_it_ignores(tmp_path):
    scan(tmp_path / "sub-01" / "anat" / "t1.nii.gz")
    scan(tmp_path / "hospital" / "images" / "deep" / "b.nii")
    scan(tmp_path / "hospital" / "labels" / "deep" / "b.nii.gz")
    scan(tmp_path / "masks" / "c.nii")  # no images beside it: an image like any other
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / ".hidden.nii").write_text("x")
    found = {record.name: record for record in find_images(tmp_path)}
    assert list(found) == ["hospital/images/deep/b.nii", "masks/c.nii", "sub-01/anat/t1.nii.gz"]
    assert found["hospital/images/deep/b.nii"].mask == tmp_path / "hospital" / "labels" / "deep" / "b.nii.gz"
    assert found["sub-01/anat/t1.nii.gz"].patient == "sub-01"
    layout = describe_layout(tmp_path)
    assert (layout.ignored_files, layout.name) == (1, "tree of nifti images, 1 masks, 2 folders understood as patients")


def test_linked_folders_are_walked_once(tmp_path):
    scan(tmp_path / "real" / "a.nii")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(folder)
    assert names(folder) == ["link/a.nii"]


def test_class_folders_with_splits(tmp_path):
    for place in ("train/dog", "train/cat", "valid/dog"):
        picture(tmp_path / place / "1.png")
    found = {record.name: (record.label, record.split) for record in find_images(tmp_path)}
    assert found == {"train/cat/1.png": (0, "train"), "train/dog/1.png": (1, "train"), "valid/dog/1.png": (1, "val")}
    assert describe_layout(tmp_path).class_names == ("cat", "dog")


def test_images_and_masks_are_no_classes(tmp_path):
    picture(tmp_path / "images" / "1.png")
    picture(tmp_path / "masks" / "1.png")
    (record,) = find_images(tmp_path)
    assert (record.label, record.mask) == (-1, tmp_path / "masks" / "1.png")


def test_dicom_tree(tmp_path):
    for name in ("CT_small.dcm", "MR_small.dcm"):
        data = Path(get_testdata_file(name, download=False)).read_bytes()
        (tmp_path / name.removesuffix("_small.dcm")).write_bytes(data)  # scanners write no suffix
    (tmp_path / "DICOMDIR").write_bytes(data)
    ct, mr = find_images(tmp_path)
    assert (ct.name, ct.modality, ct.patient, mr.modality) == ("CT", "CT", "1CT1", "MR")
    assert ct.study.startswith("1.3.6.1")
    layout = describe_layout(tmp_path)
    assert (layout.name, layout.ignored_files) == ("DICOM tree, grouped into series", 1)


# --- array files


def medmnist(path: Path, **more) -> Path:
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8), np.uint8)
    labels = np.array([[1], [0], [1]], np.uint8)
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:2], test_labels=labels[:2, 0], **more)
    return path


def test_medmnist_file(tmp_path):
    medmnist(tmp_path / "m.npz", train_field=np.array([5, 5, 6]), classes=np.array(["no", "yes"]))
    found = list(find_images(tmp_path))
    assert [record.name for record in found] == [
        "m.npz#train/0",
        "m.npz#train/1",
        "m.npz#train/2",
        "m.npz#test/0",
        "m.npz#test/1",
    ]
    assert [record.label for record in found] == [1, 0, 1, 1, 0]
    assert [record.patient for record in found] == ["m/5", "m/5", "m/6", "", ""]
    assert [(record.split, record.item) for record in found][2:4] == [("train", 2), ("test", 0)]
    assert describe_layout(tmp_path).class_names == ("no", "yes")
    assert next(find_images(tmp_path / "m.npz")).name == "m.npz#train/0"


def test_patients_go_before_groups(tmp_path):
    medmnist(tmp_path / "m.npz", train_field=np.array([5, 5, 6]), train_patients=np.array(["a", "b", "b"]))
    assert [record.patient for record in find_images(tmp_path)][:3] == ["a", "b", "b"]


def test_odd_array_file_is_one_record_that_says_why(tmp_path):
    np.savez(tmp_path / "m.npz", images=np.zeros((3, 4, 4)), labels=np.zeros((2, 1), int))
    (record,) = find_images(tmp_path)
    with pytest.raises(Unreadable, match="labels of shape"):
        read(record)
