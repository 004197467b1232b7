"""Which images there are: from a folder as it is, or from a table, to records in a fixed order."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ssl_med.data.layouts.base import KINDS, Kind, Layout, Plan
from ssl_med.data.layouts.bids import is_bids, plan_bids
from ssl_med.data.layouts.coco import find_coco, is_coco, plan_coco
from ssl_med.data.layouts.datalist import MOST_BYTES, find_datalist, plan_datalist
from ssl_med.data.layouts.dataset_json import load_json
from ssl_med.data.layouts.expand import tile_records
from ssl_med.data.layouts.table import find_tables
from ssl_med.data.layouts.tree import plan_tree
from ssl_med.data.record import Record, Tiling
from ssl_med.errors import UserError

__all__ = ["Kind", "Layout", "describe_layout", "find_images", "plan"]


def find_images(
    folder: Path,
    manifest: Path | None = None,
    columns: dict[str, str] | None = None,
    layout: Kind = "auto",
    dataset: str = "",
    tiling: Tiling | None = None,
) -> Iterator[Record]:
    """All images of a folder in a fixed order, without reading their pixels.

    Understood are a table (CSV, parquet), MSD and nnU-Net folders, BIDS, MONAI datalists, COCO files, ``.npz`` files
    in the layout of MedMNIST, class folders of pictures, folders of patients, folders of numbered frames, DICOM trees,
    and any other tree of image files; see :func:`describe_layout`.

    Args:
        folder: the data folder, or one file.
        manifest: the table or datalist to use; by default the only one of the folder that names files.
        columns: what the table's columns mean, by field (image, mask, patient, study, site, split, modality, label,
            dataset): a column's name, or a template such as ``labels/{file}``; ``""`` leaves a field out. Findings of
            several columns are ``labels`` (``edema|effusion``) or one ``label:NAME`` each; ``value`` is a number to be
            learned; ``boxes`` a column of JSON or a table of its own (``boxes.csv``), in voxels as the file counts
            them, ``boxes_mm`` in mm of the RAS world; ``group:NAME`` a subgroup, ages in bands of ten years.
        layout: what the folders of a tree mean, instead of a table: ``imagefolder`` (classes), ``patients``, ``tree``
            (nothing), ``frames`` (clips of numbered frames); ``auto`` decides, and takes folders for patients unless
            they are classes beyond doubt.
        dataset: name of the data set where no column tells; that of the folder may be a person's and is never taken.
        tiling: how slides are cut.

    Raises:
        UserError: no such folder, an unknown column or field, a file listed twice, an unknown layout.
    """
    return plan(folder, manifest, columns, layout, dataset, tiling).records()


def describe_layout(
    folder: Path,
    manifest: Path | None = None,
    columns: dict[str, str] | None = None,
    layout: Kind = "auto",
    dataset: str = "",
    tiling: Tiling | None = None,
) -> Layout:
    """How :func:`find_images` understands a folder; same arguments and errors."""
    return plan(folder, manifest, columns, layout, dataset, tiling).layout


def plan(
    folder: Path,
    manifest: Path | None = None,
    columns: dict[str, str] | None = None,
    layout: Kind = "auto",
    dataset: str = "",
    tiling: Tiling | None = None,
    ignored: int | None = None,
) -> Plan:
    """The layout and the records together, for one look at the names; arguments and errors as :func:`find_images`.

    Voxels of the label ``ignored``, and of nnU-Net's label ``ignore``, are read as -1.
    """
    folder, columns = Path(folder), columns or {}
    if not folder.exists():
        raise UserError(f"data folder {folder} does not exist: check the path")
    if layout not in KINDS:
        raise UserError(f"layout is {layout!r}, expected one of {', '.join(KINDS)}")
    found = _planned(folder, manifest, columns, layout)
    told = _with_ignored(found.layout, ignored)
    return Plan(told, partial(_completed, found.records, dataset, tiling, told.ignored_labels))


def _with_ignored(layout: Layout, asked: int | None) -> Layout:
    """The layout with what a person says that is to be ignored, and a note of it."""
    labels = tuple(sorted({*layout.ignored_labels, *([] if asked is None else [asked])}))
    if not labels:
        return layout
    names = {value: name for value, name in layout.mask_names.items() if value not in labels}
    note = f"voxels of label {', '.join(map(str, labels))} are kept as -1 and count nowhere"
    return replace(layout, ignored_labels=labels, mask_names=names, notes=(*layout.notes, note))


def _completed(
    records: Callable[[], Iterator[Record]], dataset: str, tiling: Tiling | None, ignored: tuple[int, ...]
) -> Iterator[Record]:
    """Slides as tiles, and every record with the name of its data set and the voxel labels that say nothing."""
    for record in records():
        named = replace(record, dataset=dataset) if dataset and not record.dataset else record
        named = replace(named, ignored=ignored) if ignored and named.mask else named
        if record.reader == "slides" and record.item is None and not record.aside:
            yield from tile_records(named, tiling)
        else:
            yield named


def _planned(folder: Path, manifest: Path | None, columns: dict[str, str], layout: Kind) -> Plan:
    if layout != "auto":
        if manifest or columns:
            raise UserError(f"layout {layout} was given beside a manifest or columns: one of them says what is there")
        return plan_tree(folder, layout)
    if manifest and Path(manifest).suffix.lower() == ".json":
        return _asked_datalist(Path(manifest), folder)
    return _found(folder, manifest, columns)


def _asked_datalist(manifest: Path, folder: Path) -> Plan:
    path = next((path for path in (manifest, folder / manifest) if path.is_file()), None)
    if path is None:
        raise UserError(f"manifest {manifest} does not exist: check the path")
    content = load_json(path)
    return plan_coco([(path, content)], folder) if is_coco(content) else plan_datalist(path, folder)


def _found(folder: Path, manifest: Path | None, columns: dict[str, str]) -> Plan:
    if manifest is None and is_bids(folder):
        return plan_bids(folder, columns)
    tables, notes = find_tables(folder, manifest, columns)
    if len(tables) == 1:
        return Plan(replace(tables[0].layout(), notes=notes), tables[0].records)
    if columns:
        raise UserError(f"columns were given and {len(tables)} tables name images: choose one with manifest")
    if tables:
        names = ", ".join(table.path.name for table in tables)
        notes += (f"several tables name images ({names}), none was used: choose one with manifest",)
    understood = _without_table(folder, coco=not tables)
    return understood._replace(layout=replace(understood.layout, notes=notes + understood.layout.notes))


def _without_table(folder: Path, coco: bool) -> Plan:
    if coco and (found := find_coco(folder, MOST_BYTES)):
        return plan_coco(found, folder)
    datalist = None if (folder / "imagesTr").is_dir() else find_datalist(folder)
    return plan_datalist(datalist, folder) if datalist else plan_tree(folder)
