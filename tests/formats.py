"""One small valid file of each format for the fuzzer, and a decoder of it that shares no code with the reader."""

import gzip
import io
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pydicom
import SimpleITK
import tifffile
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from ssl_med.data.readers import read
from ssl_med.data.record import Record

BOMB = bytes(30_000_000)


@dataclass(frozen=True)
class Seed:
    """A valid file of one format.

    Attributes:
        reader: name of the reader.
        files: bytes of each file by its name; the record names those in ``record``.
        header: bytes before the voxels, about.
        checksum: the damages that the format itself makes known.
        mended: damages to values without a checksum, of which each decoder makes what it can.
        decode: folder -> values, by another library.
        bomb: bytes -> a small file that unfolds to many megabytes.
    """

    reader: str
    files: Mapping[str, bytes]
    record: tuple[str, ...]
    voxels: np.ndarray
    header: int = 400
    checksum: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()
    decode: Callable[[Path], np.ndarray] | None = None
    bomb: Callable[[bytes], bytes] | None = None
    packed: str = ""
    item: int | None = None

    def knows(self, damage: str) -> bool:
        """Whether this damage cannot go unseen."""
        return damage in self.checksum


VOLUME = np.random.default_rng(0).permutation(13 * 11 * 9).reshape(13, 11, 9).astype(np.int16)
PICTURE = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
DEEP = np.random.default_rng(2).integers(0, 2**16, (40, 30, 3), np.uint16)
BODY = ("cut short", "bits of the body", "bomb")
LZW = ("bits of the body", "shifted", "zeroed")
ALL = (*BODY, "bits of the header", "shifted", "zeroed", "absurd size", "not a number")


def _seed(reader: str, names: tuple[str, ...], write: Callable[[Path], object], **facts) -> Seed:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        record = facts.pop("record", names[:1])
        paths = tuple(Path(folder) / name for name in record)
        voxels = read(Record("a", reader, paths, item=facts.get("item"))).array
        files = {name: (Path(folder) / name).read_bytes() for name in names}
    return Seed(reader, files, record, voxels, **facts)


def _by_nibabel(name: str, folder: Path) -> np.ndarray:
    return nibabel.load(folder / name).get_fdata(dtype=np.float64).astype(np.float32)


def _by_itk(name: str, folder: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(folder / name))


def _by_codec(decode: Callable[[bytes], np.ndarray], name: str, folder: Path) -> np.ndarray:
    return decode((folder / name).read_bytes())


def _by_tifffile(name: str, folder: Path) -> np.ndarray:
    with tifffile.TiffFile(folder / name) as file:
        return np.stack([page.asarray() for page in file.pages])


def _by_pydicom(name: str, folder: Path) -> np.ndarray:
    dataset = pydicom.dcmread(folder / name)
    return dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))


def _by_numpy(name: str, folder: Path) -> np.ndarray:
    found = np.load(folder / name, allow_pickle=False)
    return found["images"][1] if name.endswith(".npz") else found


def _itk(name: str, packed: bool, folder: Path) -> None:
    image = SimpleITK.GetImageFromArray(VOLUME.T.copy())
    image.SetSpacing((0.5, 0.75, 2.0))
    SimpleITK.WriteImage(image, folder / name, packed)


def _nifti(name: str, kind: type, folder: Path) -> None:
    nibabel.save(kind(VOLUME, np.diag([0.5, 0.75, 2.0, 1.0])), folder / name)


def _deep_png(folder: Path) -> None:
    (folder / "a.png").write_bytes(imagecodecs.png_encode(DEEP))


def _tiff(name: str, array: np.ndarray, folder: Path, **options) -> None:
    tifffile.imwrite(folder / name, array, metadata=None, **options)


def _pages(folder: Path) -> None:
    with tifffile.TiffWriter(folder / "a.tif") as file:
        for page in VOLUME.astype(np.uint16):
            file.write(page, metadata=None, compression="lzw")


def _slide(folder: Path) -> None:
    pixels = np.random.default_rng(3).integers(60, 220, (512, 512, 3), np.uint8)
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate", "metadata": None}
    with tifffile.TiffWriter(folder / "a.svs") as file:
        file.write(pixels, resolution=(1e4 / 0.5, 1e4 / 0.5), resolutionunit="CENTIMETER", **options)
        file.write(pixels[::4, ::4], subfiletype=1, **options)


def _first_page(name: str, folder: Path) -> np.ndarray:
    with tifffile.TiffFile(folder / name) as file:
        return file.pages[0].asarray()


def _npz(folder: Path) -> None:
    np.savez_compressed(folder / "a.npz", images=VOLUME[:3])


def _frames(folder: Path) -> None:
    for time in range(3):
        Pillow.fromarray(PICTURE[..., time]).save(folder / f"a{time}.png")


def _film(folder: Path) -> None:
    import av

    with av.open(folder / "a.avi", "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for time in range(4):
            picture = np.full((32, 48, 3), 40, np.uint8)
            picture[8:20, 4 * time : 4 * time + 12] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _dicom(folder: Path) -> None:
    meta, dataset = FileMetaDataset(), Dataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta, dataset.SOPClassUID = meta, meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID, dataset.Modality, dataset.PatientID = meta.MediaStorageSOPInstanceUID, "CT", "P7"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2", "1.1"
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [10, 20, 30]
    dataset.PixelSpacing, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = [0.8, 0.5], 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = VOLUME.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = VOLUME[..., 0].tobytes()
    dataset.save_as(folder / "a.dcm", enforce_file_format=True)


def _gzip_bomb(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data) + BOMB, 1)


def _tail_bomb(pack: Callable[[bytes], bytes], mark: bytes, data: bytes) -> bytes:
    """A text header followed by far too much."""
    return data[: data.index(mark) + len(mark)] + pack(VOLUME.T.tobytes() + BOMB)


def _meta_bomb(data: bytes) -> bytes:
    fixed = re.sub(rb"CompressedDataSize = \d+\n", b"", data)
    return _tail_bomb(zlib.compress, b"LOCAL\n", fixed)


def _npz_bomb(data: bytes) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i2", "fortran_order": False, "shape": (3, 11, 9)})
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + BOMB)
    return target.getvalue()


def _png_bomb(data: bytes) -> bytes:
    """A picture of 30 x 40 pixels whose packed lines go on and on."""
    place = data.index(b"IDAT") - 4
    end = data.index(b"IEND") - 4
    body = zlib.compress(BOMB, 1)
    packed = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    return data[:place] + packed + data[end:]


def _tiff_bomb(data: bytes) -> bytes:
    """The packed strip of a small picture replaced by one that unfolds to megabytes."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        offsets, counts = page.tags[273], page.tags[279]
    block, body = bytearray(data), zlib.compress(BOMB, 1)
    layout = "<H" if counts.dtype == 3 else "<I"
    size = min(len(body), 65535 if layout == "<H" else len(body))
    struct.pack_into("<I" if offsets.dtype == 4 else "<H", block, offsets.valueoffset, len(data))
    struct.pack_into(layout, block, counts.valueoffset, size)
    return bytes(block) + body


_png_by_codec = partial(_by_codec, imagecodecs.png_decode)
_n = nibabel
SEEDS: dict[str, Seed] = {
    "nifti": _seed(
        "nifti", ("a.nii",), partial(_nifti, "a.nii", _n.Nifti1Image), decode=partial(_by_nibabel, "a.nii"), header=352
    ),
    "nifti gz": _seed(
        "nifti",
        ("a.nii.gz",),
        partial(_nifti, "a.nii.gz", _n.Nifti1Image),
        checksum=ALL,
        bomb=_gzip_bomb,
        decode=partial(_by_nibabel, "a.nii.gz"),
    ),
    "analyze": _seed(
        "analyze", ("a.hdr", "a.img"), partial(_nifti, "a.img", _n.Nifti1Pair), decode=partial(_by_nibabel, "a.img")
    ),
    "nrrd": _seed("nrrd", ("a.nrrd",), partial(_itk, "a.nrrd", False), decode=partial(_by_itk, "a.nrrd")),
    "nrrd gz": _seed(
        "nrrd",
        ("a.nrrd",),
        partial(_itk, "a.nrrd", True),
        checksum=BODY,
        bomb=partial(_tail_bomb, gzip.compress, b"\n\n"),
        decode=partial(_by_itk, "a.nrrd"),
    ),
    "nhdr": _seed(
        "nrrd", ("a.nhdr", "a.raw"), partial(_itk, "a.nhdr", False), decode=partial(_by_itk, "a.nhdr"), header=0
    ),
    "mha": _seed("metaimage", ("a.mha",), partial(_itk, "a.mha", False), decode=partial(_by_itk, "a.mha")),
    "mha zlib": _seed(
        "metaimage",
        ("a.mha",),
        partial(_itk, "a.mha", True),
        checksum=BODY,
        bomb=_meta_bomb,
        decode=partial(_by_itk, "a.mha"),
    ),
    "mhd": _seed(
        "metaimage", ("a.mhd", "a.zraw"), partial(_itk, "a.mhd", True), decode=partial(_by_itk, "a.mhd"), header=0
    ),
    "dicom": _seed("dicom", ("a.dcm",), _dicom, decode=partial(_by_pydicom, "a.dcm")),
    "png": _seed(
        "raster",
        ("a.png",),
        lambda folder: Pillow.fromarray(PICTURE).save(folder / "a.png"),
        checksum=ALL,
        bomb=_png_bomb,
        decode=partial(_png_by_codec, "a.png"),
        header=33,
    ),
    "png 16 bit colour": _seed(
        "raster",
        ("a.png",),
        _deep_png,
        checksum=ALL,
        bomb=_png_bomb,
        decode=partial(_png_by_codec, "a.png"),
        header=33,
    ),
    "jpeg": _seed(
        "raster",
        ("a.jpg",),
        lambda folder: Pillow.fromarray(PICTURE).save(folder / "a.jpg"),
        decode=partial(_by_codec, imagecodecs.jpeg8_decode, "a.jpg"),
        header=600,
    ),
    "tiff": _seed(
        "raster", ("a.tif",), partial(_tiff, "a.tif", PICTURE, photometric="rgb"), decode=partial(_by_tifffile, "a.tif")
    ),
    "tiff 16 bit colour": _seed(
        "raster",
        ("a.tif",),
        partial(_tiff, "a.tif", DEEP, photometric="rgb", compression="deflate"),
        decode=partial(_by_itk, "a.tif"),
        bomb=_tiff_bomb,
    ),
    "tiff pages": _seed("raster", ("a.tif",), _pages, decode=partial(_by_tifffile, "a.tif"), mended=LZW),
    "npy": _seed(
        "array",
        ("a.npy",),
        lambda folder: np.save(folder / "a.npy", VOLUME),
        decode=partial(_by_numpy, "a.npy"),
        header=128,
    ),
    "npz": _seed(
        "array", ("a.npz",), _npz, checksum=BODY, bomb=_npz_bomb, decode=partial(_by_numpy, "a.npz"), item=1, header=60
    ),
    "frames": _seed(
        "frames",
        ("a0.png", "a1.png", "a2.png"),
        _frames,
        record=("a0.png", "a1.png", "a2.png"),
        checksum=ALL,
        header=33,
    ),
    "film": _seed("video", ("a.avi",), _film),
    "slide": _seed("slides", ("a.svs",), _slide, item=0, decode=partial(_first_page, "a.svs")),
}
