"""Who was scanned stays out of everything but the store's private folder: all bytes are searched."""

import gzip
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from stores import volume

from ssl_med.cli import main

TAGS = {
    "PatientName": "Quasimodo^Esmeralda",
    "PatientID": "PID-7734501",
    "OtherPatientNames": "Gringoire^Pierre",
    "PatientBirthDate": "19310417",
    "PatientAddress": "Rue du Parvis 12",
    "PatientTelephoneNumbers": "0049-555-8317",
    "PatientMotherBirthName": "Fleurdelys",
    "MedicalRecordLocator": "MRL-99182",
    "PatientComments": "limps since childhood",
    "AccessionNumber": "ACC5518823",
    "StudyID": "STUDYX81",
    "StudyDate": "20190823",
    "ReferringPhysicianName": "Frollo^Claude",
    "PerformingPhysicianName": "Phoebus^Captain",
    "OperatorsName": "Djali^Goat",
    "InstitutionName": "Notredame Hospital",
    "InstitutionAddress": "Ile de la Cite",
    "StationName": "BELLTOWER3",
    "DeviceSerialNumber": "SER-664411",
    "StudyDescription": "followup of Esmeralda",
    "SeriesDescription": "hunchback protocol",
    "ProtocolName": "gargoyle sequence",
    "RequestedProcedureDescription": "look for bells",
}
NAMES = ["Valjean_Jean", "Javert_Inspector", "Cosette_Fauchelevent"]
HEADER = {
    "descrip": b"scan of Valjean",
    "intent_name": b"Thenardier",
    "db_name": b"MontreuilDB",
    "aux_file": b"Gavroche",
}
EXTENSIONS = {
    "dicom": "Enjolras^Marius",
    "afni": "<AFNI_atr>Champmathieu</AFNI_atr>",
    "comment": "seen by Montparnasse",
}
"""What a NIfTI file carries behind its header, by ecode: 2, 4 and 6."""


def slices(folder: Path, number: int) -> list[str]:
    """A DICOM series with every tag above; its UIDs are secrets too."""
    folder.mkdir(parents=True)
    image, study, series = volume(number, (20, 22, 24))[0], generate_uid(), generate_uid()
    uids = [study, series]
    for level in range(24):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        scan = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        for name, value in TAGS.items():
            setattr(scan, name, value)
        scan.SOPClassUID, scan.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        scan.StudyInstanceUID, scan.SeriesInstanceUID, scan.Modality = study, series, "MR"
        scan.ImageOrientationPatient, scan.PixelSpacing = [1, 0, 0, 0, 1, 0], [1.5, 1.0]
        scan.ImagePositionPatient, scan.SliceThickness = [0, 0, 2.0 * level], 2.0
        scan.Rows, scan.Columns, scan.InstanceNumber = 22, 20, level + 1
        scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME2"
        scan.BitsAllocated = scan.BitsStored = 16
        scan.HighBit, scan.PixelRepresentation = 15, 1
        scan.PixelData = np.ascontiguousarray(image[:, :, level].T).astype("<i2").tobytes()
        scan.save_as(folder / f"Quasimodo_{level:03d}.dcm", enforce_file_format=True)
        uids.append(scan.SOPInstanceUID)
    return uids


def nifti(path: Path, number: int) -> None:
    import nibabel

    path.parent.mkdir(parents=True)
    image = nibabel.Nifti1Image(volume(number)[0], np.diag([1, 1.5, 2, 1]))
    for field, text in HEADER.items():
        image.header[field] = text
    for code, text in EXTENSIONS.items():
        kind = nibabel.nifti1.Nifti1Extension
        image.header.extensions.append(kind(code, dicom_bytes(text) if code == "dicom" else text.encode()))
    nibabel.save(image, path)


def dicom_bytes(name: str) -> bytes:
    """A header of DICOM as an extension holds it."""
    stream, header = BytesIO(), Dataset()
    header.PatientName = name
    dcmwrite(stream, header, implicit_vr=True, little_endian=True, force_encoding=True)
    return stream.getvalue()


def everything_in(folder: Path) -> dict[str, bytes]:
    """Names and contents of all files outside ``private``; parquet as text too, packed parts unpacked."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if "private" in Path(name).parts or not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            content += repr(table.to_pylist()).encode() + repr(table.schema.metadata).encode()
        if path.suffix == ".png":
            content += b"".join(unpacked(content))
        found[name] = name.encode() + b"\n" + content
    return found


def unpacked(content: bytes) -> list[bytes]:
    """Text that a PNG holds packed (zTXt, iTXt)."""
    parts = content.split(b"zTXt")[1:] + content.split(b"iTXt")[1:]
    return [zlib.decompressobj().decompress(part.split(b"\0", 2)[-1]) for part in parts if b"\x78\x9c" in part[:100]]


def secrets_of(uids: list[str]) -> list[bytes]:
    words = [*TAGS.values(), *NAMES, *(text.decode() for text in HEADER.values()), *EXTENSIONS.values(), *uids]
    words += ["Champmathieu", "Montparnasse"]
    parts = [part for word in words for part in word.replace("_", "^").split("^") if len(part) > 4]
    return [word.encode() for word in {*words, *parts, "Quasimodo_", "scans_of_patients"}]


def test_the_scans_hold_what_is_searched_for(tmp_path):
    nifti(tmp_path / "x" / "scan.nii.gz", 1)
    content = gzip.decompress((tmp_path / "x" / "scan.nii.gz").read_bytes())
    words = [*(text.decode() for text in HEADER.values()), *EXTENSIONS.values()]
    assert [word for word in words if word.encode() not in content] == []


def leaks(folder: Path, secrets: list[bytes]) -> list[tuple[str, bytes]]:
    files = everything_in(folder)
    assert files
    return [(name, s) for name, content in files.items() for s in secrets if s.lower() in content.lower()]


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "a.txt").write_text("seen by frollo today")
    assert leaks(tmp_path, secrets_of([])) == [("a.txt", b"Frollo")]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_nobody_is_named_anywhere(tmp_path, capfd):
    scans, work = tmp_path / "scans_of_patients", tmp_path / "work"
    uids = slices(scans / "Quasimodo_Esmeralda" / "T1", 0)
    for number, name in enumerate(NAMES, 1):
        nifti(scans / name / f"{name}_T1.nii.gz", number)
    (scans / "Valjean_Jean" / "Valjean_Jean_broken.nii.gz").write_bytes(gzip.compress(b"no image"))
    work.mkdir()
    secrets = secrets_of(uids)

    assert main(["prepare", str(scans), "--out", str(work / "store")]) == 0
    said = capfd.readouterr()
    assert not [s for s in secrets if s in (said.out + said.err).encode()]
    names = (work / "store" / "private" / "sources.csv").read_text()
    assert all(name in names for name in NAMES)  # the owner can find them, there alone

    run = ["--trainer.max_steps", "3", "--watch.track", "[tensorboard]"]
    assert main(["pretrain", "smoke/mae_3d", "--data", str(work / "store"), "--out", str(work / "run"), *run]) == 0
    assert main(["export", str(work / "run"), "--out", str(work / "export")]) == 0
    assert main(["embed", str(work / "run"), "--data", str(work / "store"), "--out", str(work / "f.parquet")]) == 0
    assert main(["report", str(work / "run")]) == 0
    said = capfd.readouterr()
    assert not [s for s in secrets if s in (said.out + said.err).encode()]
    assert leaks(work, secrets) == []


def paths_in(folder: Path, place: str) -> set[str]:
    return {name for name, content in everything_in(folder).items() if place.encode() in content}


def test_paths_stay_in_the_config(tmp_path):
    """A run says where its store lies in config.yaml alone; an export says no path at all."""
    nifti(tmp_path / "in" / "a" / "x.nii.gz", 1)
    nifti(tmp_path / "in" / "b" / "y.nii.gz", 2)
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "store")]) == 0
    steps = ["--trainer.max_steps", "2"]
    assert (
        main(["pretrain", "smoke/mae_3d", "--data", str(tmp_path / "store"), "--out", str(tmp_path / "run"), *steps])
        == 0
    )
    place = str(tmp_path)
    assert paths_in(tmp_path / "run", place) == {"config.yaml"}
    lines = [line.strip() for line in (tmp_path / "run" / "config.yaml").read_text().splitlines() if place in line]
    assert lines == [f"folder: {tmp_path / 'store'}"]
    assert paths_in(tmp_path / "store", place) == set()


def test_folders_of_persons_never_become_classes(tmp_path, capfd):
    """A tree of pictures with a folder for each person looks like classes; the names stay out of store and output."""
    from PIL import Image

    for number, name in enumerate(NAMES):
        for view in ("front", "side"):
            path = tmp_path / "in" / name / f"{view}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(volume(number)[0][:, :, 5 + len(view)].clip(0, 255).astype(np.uint8)).save(path)
    secrets = secrets_of([])
    assert main(["inspect", str(tmp_path / "in")]) == 0
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "store")]) == 0
    said = capfd.readouterr()
    assert not [s for s in secrets if s.lower() in (said.out + said.err).lower().encode()]
    assert leaks(tmp_path / "store", secrets) == []
    rows = pq.read_table(tmp_path / "store" / "index.parquet").to_pylist()
    assert len({row["patient"] for row in rows}) == len(NAMES)
    assert {row["label"] for row in rows} == {-1}
