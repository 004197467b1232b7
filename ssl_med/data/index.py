"""Which images there are: from a folder as it is, or from a table, to records in a fixed order."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ssl_med.data.layouts.base import KINDS, Kind, Layout, Plan
from ssl_med.data.layouts.bids import is_bids, plan_bids
from ssl_med.data.layouts.datalist import find_datalist, plan_datalist
from ssl_med.data.layouts.table import find_tables
from ssl_med.data.layouts.tree import plan_tree
from ssl_med.data.record import Record
from ssl_med.errors import UserError

__all__ = ["Kind", "Layout", "describe_layout", "find_images", "plan"]


def find_images(
    folder: Path,
    manifest: Path | None = None,
    columns: dict[str, str] | None = None,
    layout: Kind = "auto",
) -> Iterator[Record]:
    """All images of a folder in a fixed order, without reading their pixels.

    Understood are a table (CSV, parquet), MSD and nnU-Net folders, BIDS, MONAI datalists, ``.npz`` files in the layout
    of MedMNIST, class folders of pictures, folders of patients, folders of numbered frames, DICOM trees, and any other
    tree of image files; see :func:`describe_layout`.

    Args:
        folder: the data folder, or one file.
        manifest: the table or datalist to use; by default the only one of the folder that names files.
        columns: what the table's columns mean, by field (image, mask, patient, study, site, split, modality, label): a
            column's name, or a template such as ``labels/{file}``; ``""`` leaves a field out.
        layout: what the folders of a tree mean, instead of a table: ``imagefolder`` (classes), ``patients``, ``tree``
            (nothing), ``frames`` (clips of numbered frames); ``auto`` decides, and takes folders for patients unless
            they are classes beyond doubt.

    Raises:
        UserError: no such folder, an unknown column or field, a file listed twice, an unknown layout.
    """
    return plan(folder, manifest, columns, layout).records()


def describe_layout(
    folder: Path,
    manifest: Path | None = None,
    columns: dict[str, str] | None = None,
    layout: Kind = "auto",
) -> Layout:
    """How :func:`find_images` understands a folder; same arguments and errors."""
    return plan(folder, manifest, columns, layout).layout


def plan(
    folder: Path,
    manifest: Path | None = None,
    columns: dict[str, str] | None = None,
    layout: Kind = "auto",
) -> Plan:
    """The layout and the records together, for one look at the names; arguments and errors as :func:`find_images`."""
    folder, columns = Path(folder), columns or {}
    if not folder.exists():
        raise UserError(f"data folder {folder} does not exist: check the path")
    if layout not in KINDS:
        raise UserError(f"layout is {layout!r}, expected one of {', '.join(KINDS)}")
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
    return plan_datalist(path, folder)


def _found(folder: Path, manifest: Path | None, columns: dict[str, str]) -> Plan:
    if manifest is None and is_bids(folder):
        return plan_bids(folder, columns)
    tables, notes = find_tables(folder, manifest, columns)
    if len(tables) == 1:
        return Plan(tables[0].layout(), tables[0].records)
    if columns:
        raise UserError(f"columns were given and {len(tables)} tables name images: choose one with manifest")
    if tables:
        names = ", ".join(table.path.name for table in tables)
        notes += (f"several tables name images ({names}), none was used: choose one with manifest",)
    datalist = None if (folder / "imagesTr").is_dir() else find_datalist(folder)
    understood = plan_datalist(datalist, folder) if datalist else plan_tree(folder)
    return understood._replace(layout=replace(understood.layout, notes=understood.layout.notes + notes))
