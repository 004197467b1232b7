"""Which images there are: from a folder as it is, or from a table, to records in a fixed order."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ssl_med.data.record import Record
from ssl_med.data.table import find_tables
from ssl_med.data.tree import Layout, Plan, plan_tree
from ssl_med.errors import UserError

__all__ = ["Layout", "describe_layout", "find_images"]


def find_images(folder: Path, manifest: Path | None = None, columns: dict[str, str] | None = None) -> Iterator[Record]:
    """All images of a folder in a fixed order, without reading their pixels.

    Understood are a table (CSV), MSD and nnU-Net folders, ``.npz`` files in the layout of MedMNIST, class folders of
    pictures, DICOM trees, and any other tree of image files; see :func:`describe_layout`.

    Args:
        folder: the data folder, or one file.
        manifest: the table to use; by default the only CSV file of the folder that names files.
        columns: what the table's columns mean, by field (image, mask, patient, study, site, split, modality, label): a
            column's name, or a template such as ``labels/{file}``; ``""`` leaves a field out.

    Raises:
        UserError: no such folder, an unknown column or field, a file listed twice, several channels per case.
    """
    return _plan(Path(folder), manifest, columns or {}).records()


def describe_layout(folder: Path, manifest: Path | None = None, columns: dict[str, str] | None = None) -> Layout:
    """How :func:`find_images` understands a folder; same arguments and errors."""
    return _plan(Path(folder), manifest, columns or {}).layout


def _plan(folder: Path, manifest: Path | None, columns: dict[str, str]) -> Plan:
    if not folder.exists():
        raise UserError(f"data folder {folder} does not exist: check the path")
    tables, notes = find_tables(folder, manifest, columns)
    if len(tables) == 1:
        return Plan(tables[0].layout(), tables[0].records)
    if columns:
        raise UserError(f"columns were given and {len(tables)} tables name images: choose one with manifest")
    if tables:
        names = ", ".join(table.path.name for table in tables)
        notes += (f"several tables name images ({names}), none was used: choose one with manifest",)
    plan = plan_tree(folder)
    return plan._replace(layout=replace(plan.layout, notes=plan.layout.notes + notes))
