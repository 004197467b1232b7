"""Deep and unusual colour: 12-bit JPEG, CMYK TIFF, 16-bit colour DICOM; masks inside .npz; companions of headers."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from image_files import record, written
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from stores import save_nifti, store_of, volume

from ssl_med.data.index import describe_layout
from ssl_med.data.readers import jpeg12, read
from ssl_med.data.record import Record, Unreadable


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_of_12_bits_keeps_them(tmp_path, channels, monkeypatch) -> None:
    ramp = np.add.outer(np.arange(24), np.arange(32)) * 60
    array = np.stack([ramp + 100 * c for c in range(channels)], -1).astype(np.uint16)
    path = written(tmp_path / "a.jpg", imagecodecs.jpeg_encode(array.squeeze(), level=98, bitspersample=12))
    with path.open("rb") as stream:
        assert jpeg12.frame_of(stream) == (12, 24, 32, channels)
    found = read(record(path)).array
    assert found.shape == (channels, 24, 32)
    assert np.abs(found.astype(int) - np.moveaxis(array, -1, 0)).max() < 40
    monkeypatch.setattr(jpeg12, "find_spec", lambda name: None)
    with pytest.raises(Unreadable, match=r"needs the package imagecodecs: pip install 'ssl_med\[slides\]'"):
        read(record(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_of_inks_becomes_rgb(tmp_path, dtype) -> None:
    inks = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (12, 10, 4), dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated")
    most = float(np.iinfo(dtype).max)
    expected = (1 - inks[..., :3] / most) * (1 - inks[..., 3:] / most) * most
    found = read(record(tmp_path / "a.tif")).array
    assert found.dtype == dtype
    assert np.abs(np.moveaxis(found, 0, -1) - expected).max() <= 1


def test_colour_dicom_of_16_bits(tmp_path) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = generate_uid(), generate_uid(), "XC"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    pixels = np.random.default_rng(0).integers(0, 2**16, (12, 10, 3), dtype=np.uint16)
    dataset.Rows, dataset.Columns, dataset.PixelData = 12, 10, pixels.astype("<u2").tobytes()
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    found = read(Record("a", "dicom", (tmp_path / "a.dcm",))).array
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found.reshape(3, 12, 10), np.moveaxis(pixels, -1, 0))


def test_masks_inside_an_array_file_are_prepared(tmp_path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 20, 24), dtype=np.uint8)
    masks = (images > 128).astype(np.uint8) * np.arange(1, 7, dtype=np.uint8)[:, None, None]
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "set.npz", train_images=images, train_masks=masks)
    store = store_of(tmp_path / "in", tmp_path / "store")
    assert len(store.rows) == 6
    assert all(row.has_mask for row in store.rows)
    for row in store.rows:
        place = max(row.mask_values) - 1
        np.testing.assert_array_equal(store.read(row)[0], images[place])
        np.testing.assert_array_equal(store.read(row, "masks")[0], masks[place])


def test_the_voxels_beside_a_header_are_no_files_that_nobody_reads(tmp_path) -> None:
    for number in range(2):
        save_nifti(tmp_path / f"{number}.nii.gz", volume(number)[0])
    (tmp_path / "scan.mhd").write_text("ObjectType = Image\nElementDataFile = scan.raw\n")
    (tmp_path / "scan.raw").write_bytes(bytes(8))
    assert describe_layout(tmp_path).ignored_files == 0
    (tmp_path / "other.raw").write_bytes(bytes(8))
    assert describe_layout(tmp_path).ignored_files == 1
