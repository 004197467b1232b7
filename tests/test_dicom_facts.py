"""Institution and sex of a DICOM header: sites and subgroups, no clear text of the first anywhere."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom_slice, saved
from image_files import record, volume

from ssl_med.data.index import find_images
from ssl_med.data.readers import read
from ssl_med.data.store import Store
from ssl_med.verbs.inspect import inspect
from ssl_med.verbs.prepare import prepare

SECRET = "St Quasimodo Hospital"
PIXELS = volume((8, 16, 17)) % 3000


def patients(folder: Path) -> None:
    """Two patients of two institutions, and one whose header is silent."""
    for number, (site, sex) in enumerate(((SECRET, "F"), ("Elsewhere", "M"), ("", ""))):
        place = folder / f"p{number}"
        place.mkdir(parents=True)
        facts = {"InstitutionName": site, "PatientSex": sex} if site else {}
        for n in range(8):
            tags = {
                "PatientID": f"P{number}",
                "SeriesInstanceUID": f"1.2.{number}",
                "StudyInstanceUID": f"1.3.{number}",
            }
            saved(place / f"{n}.dcm", dicom_slice(n, PIXELS[n] + number, **tags, **facts))


def test_sites_and_sexes_of_a_tree(tmp_path, capsys):
    patients(tmp_path / "in")
    found = {one.patient: one for one in find_images(tmp_path / "in")}
    assert [found[f"P{n}"].site for n in range(3)] == [SECRET, "Elsewhere", ""]
    assert [found[f"P{n}"].groups for n in range(3)] == [(("sex", "F"),), (("sex", "M"),), ()]
    assert inspect(tmp_path / "in")["sites"] == 2
    prepare(tmp_path / "in", tmp_path / "store")
    rows = Store(tmp_path / "store").rows
    assert len({row.site for row in rows}) == 3
    assert sorted(row.groups for row in rows) == [[], ["sex=F"], ["sex=M"]]
    assert "quasimodo" not in capsys.readouterr().out.lower()
    written = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path.name for path in written if SECRET.encode() in path.read_bytes()] == []


def test_a_table_says_the_site_first(tmp_path):
    patients(tmp_path)
    (tmp_path / "t.csv").write_text("image,site,group:sex\np0,A,x\np1,,\n")
    found = find_images(tmp_path, columns={"image": "image"})
    assert [(one.site, one.groups) for one in found] == [("A", (("sex", "x"),)), ("Elsewhere", ())]


@pytest.mark.parametrize("sex", ["DOE JOHN", "X", ""])
def test_a_sex_that_is_none_is_not_kept(tmp_path, sex):
    saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0], PatientSex=sex))
    assert next(iter(find_images(tmp_path))).groups == ()


def test_an_institution_that_breaks_the_standard_harms_no_image(tmp_path):
    from pydicom import config

    with config.disable_value_validation():
        path = saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0], InstitutionName="x" * 100))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"x" * 100, b"\xff\xfe" * 50))
    image = read(record(path))
    assert image.warnings == ()
    np.testing.assert_array_equal(image.array[0], PIXELS[0] - 1024)
    assert len(list(find_images(tmp_path))) == 1
