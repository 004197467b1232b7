"""Small DICOM files with distinct values, written for the tests of the DICOM reader."""

from pathlib import Path

import numpy as np
from image_files import volume
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ssl_med.data.readers.dicom import find_series
from ssl_med.data.record import Record

PIXELS = volume((5, 4, 3)) + 100  # slices, rows, columns


def dicom_slice(number: int, pixels: np.ndarray, **tags) -> Dataset:
    """A slice at z = 30 + 2.5 number (LPS); ``tags`` override, None removes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.PatientID, dataset.Modality = "1.2", "1.1", "P7", "CT"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [10, 20, 30 + 2.5 * number]
    dataset.PixelSpacing = [0.8, 0.5]  # between rows, between columns
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    return dataset


def saved(path: Path, dataset: Dataset) -> Path:
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def saved_all(folder: Path, datasets: list[Dataset]) -> list[Path]:
    """Files whose names are in another order than their slices."""
    return [saved(folder / f"{(n * 7) % 10}_{n:03d}.dcm", dataset) for n, dataset in enumerate(datasets)]


def series(folder: Path, datasets: list[Dataset]) -> Record:
    """All datasets as one record; fails where they are not one series."""
    (found,) = find_series(saved_all(folder, datasets))
    return Record("s", "dicom", found.files, item=found.item)


def nested(**sequences) -> Dataset:
    """A functional group: ``nested(PlanePositionSequence={"ImagePositionPatient": [0, 0, 1]})``."""
    group = Dataset()
    for name, values in sequences.items():
        macro = Dataset()
        for tag, value in values.items():
            setattr(macro, tag, value)
        setattr(group, name, Sequence([macro]))
    return group


def multiframe(groups: list[Dataset] | None, pixels: np.ndarray = PIXELS, **tags) -> Dataset:
    """One file with a frame for each group of per-frame functional groups."""
    dataset = dicom_slice(0, pixels[0], NumberOfFrames=len(pixels), PixelData=pixels.astype("<u2").tobytes(), **tags)
    for tag in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, tag)
    if groups is not None:
        shared = nested(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [0.8, 0.5]},
        )
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
        dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


def at(z: float, **sequences) -> Dataset:
    """The functional group of a frame at height z."""
    return nested(PlanePositionSequence={"ImagePositionPatient": [0, 0, z]}, **sequences)
