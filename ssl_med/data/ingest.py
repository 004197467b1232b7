"""One record into the store: read, gate, another grid where asked, measure, write. What engines spread over workers."""

import hashlib
import hmac
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ssl_med.data.arrays import write_array
from ssl_med.data.boxes import stored_boxes
from ssl_med.data.intensity import statistics
from ssl_med.data.journal import Outcome
from ssl_med.data.kinds import as_grey, is_grey
from ssl_med.data.likeness import perceptual_hash
from ssl_med.data.maps import FLAT, as_bytes, as_shares, is_flat, saliency_map
from ssl_med.data.points import labelled_points, mask_values, tissue_points
from ssl_med.data.readers import read, read_map, read_mask
from ssl_med.data.readers.companions import with_companions
from ssl_med.data.record import Image, Record, SetAside, Unreadable
from ssl_med.data.rows import Row
from ssl_med.data.settings import DEFAULTS, Settings, packed, regrid
from ssl_med.data.store import content_hash


def _said(record: Record, settings: Settings) -> str:
    """What the folder and the person say of a record, beside the bytes of its files.

    What was added to records later is told only where it is given: the stores of earlier versions stay as they are.
    The name of the data set is not a part of an image.
    """
    later = (record.frame, record.value, record.groups, record.units, record.tiling)
    told = "" if later == ("read", None, (), "", None) else repr(later)
    told += "no boxes" if record.boxed and not record.boxes else ""
    told += f"ignored {record.ignored}" if record.ignored else ""
    return repr((replace(record, files=(), mask=None), settings)) + told + settings.saliency


def files_of(record: Record) -> list[Path]:
    """All files that a record is read from: those it names, and those in which their headers say the voxels are."""
    named = [*record.files, *(path for path in (record.mask, record.saliency) if path)]
    return with_companions(named)


def source_of(record: Record, settings: Settings = DEFAULTS) -> str:
    """Changes when a file of the record changes (name, size, time), what the folder says of it, or a setting."""
    parts = [_said(record, settings)]
    for path in files_of(record):
        if path.exists():  # a missing file is told when it is read
            state = path.stat()
            parts.append(f"{path.name}:{state.st_size}:{state.st_mtime_ns}")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def content_of(record: Record, settings: Settings = DEFAULTS) -> str:
    """The same of the bytes of the files: a file that was only copied or touched is not done again."""
    digest = hashlib.sha256(_said(record, settings).encode())
    for path in files_of(record):
        if path.is_file():
            state = path.stat()
            digest.update(_digest(path, state.st_size, state.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> bytes:
    """Hash of a file's bytes, once for all rows of an array file or tiles of a slide; anew when the file changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def keyed(key: bytes, text: str) -> str:
    """Keyed hash of an identifier; empty stays empty. Without the key it cannot be guessed back."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16] if text else ""


@dataclass(frozen=True)
class Job:
    """A record to do.

    Attributes:
        record: which.
        before: what became of it earlier, if its files still lie in the store.
        one_channel: keep one of three equal channels.
    """

    record: Record
    before: Outcome | None = None
    one_channel: bool = False


def prepare_one(job: Job, folder: Path, key: bytes, settings: Settings = DEFAULTS) -> Outcome:
    """Read one record and put it into the store. A bad image becomes an outcome with its reason, never an exception."""
    record = job.record
    source, content = source_of(record, settings), content_of(record, settings)
    if job.before and job.before.content == content:
        return replace(job.before, source=source, reused=True)
    if record.aside:
        return Outcome(source, record.name, None, record.aside, aside=True, content=content)
    try:
        image = read(record)
        grey = is_grey(image)
        image = as_grey(image) if grey and job.one_channel else image
        kept, mask = regrid(image, settings), read_mask(record, image)
        if mask is not None:
            mask = regrid(replace(image, array=mask), settings, 0).array
        stands_out = _map(record, image, kept, settings)
        boxes = stored_boxes(record, image, kept)
    except Unreadable as error:
        return Outcome(source, record.name, None, str(error), isinstance(error, SetAside), content)
    except MemoryError:
        return Outcome(source, record.name, None, "not enough memory to read it", content=content)
    row = replace(_stored(record, kept, mask, folder, key, settings), boxes=boxes)
    return Outcome(source, record.name, _with_map(row, stands_out, folder, settings), content=content, grey=grey)


def _map(record: Record, image: Image, kept: Image, settings: Settings) -> np.ndarray | None:
    """The saliency map of an image on its new grid, (1, \\*space) uint8: measured, or as a person gave it."""
    if settings.saliency == "file":
        given = replace(image, array=as_shares(read_map(record, image)))
        return as_bytes(regrid(given, settings, 1).array)
    if settings.saliency:
        found = statistics(kept.array)
        return saliency_map(kept.array, settings.saliency, found.low, found.high)
    return None


def _stored(record: Record, image: Image, mask: np.ndarray | None, folder: Path, key: bytes, settings: Settings) -> Row:
    """Write image and mask and make the row, without boxes and saliency map."""
    name, array = keyed(key, record.name), image.array
    found = statistics(array)
    numbers, scale = packed(array, settings)
    tissue = tissue_points(array, found.low, found.high)
    row = Row(
        id=name,
        patient=keyed(key, record.patient or record.name),
        study=keyed(key, record.study),
        site=keyed(key, record.site),
        split=record.split,
        label=record.label,
        modality=image.modality or record.modality,
        shape=list(array.shape),
        spacing=[float(s) for s in image.spacing],
        affine=[] if image.affine is None else [float(a) for a in image.affine.ravel()],
        dtype=array.dtype.name,
        has_mask=mask is not None,
        mask_values=[] if mask is None else mask_values(mask),
        sha256=content_hash(array),
        **asdict(found),
        **scale,
        seal=write_array(folder / "images" / f"{name}.{settings.format}", numbers, settings.crop, tissue),
        phash=perceptual_hash(array),
        warnings=list(image.warnings),
        labels=list(record.labels),
        value=record.value,
        groups=[f"{group}={value}" for group, value in record.groups],
        dataset=record.dataset,
        units=image.units or record.units,
        boxed=record.boxed,
        window=image.window,
    )
    if mask is not None:
        path = folder / "masks" / f"{name}.{settings.format}"
        row = replace(row, mask_seal=write_array(path, mask, settings.crop, labelled_points(mask)))
    return row


def _with_map(row: Row, found: np.ndarray | None, folder: Path, settings: Settings) -> Row:
    """The row with its saliency map written, where one was asked for."""
    if found is None:
        return row
    seal = write_array(folder / "saliency" / f"{row.id}.{settings.format}", found, settings.crop)
    return replace(row, saliency_seal=seal, warnings=[*row.warnings, FLAT] if is_flat(found) else row.warnings)
