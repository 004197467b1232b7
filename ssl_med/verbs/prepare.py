"""``ssl-med prepare``: a folder of scans to a store."""

from pathlib import Path
from typing import Any


def prepare(
    data: str | Path,
    out: str | Path,
    manifest: str | Path | None = None,
    columns: dict[str, str] | None = None,
    workers: int = 1,
    max_bad_share: float = 0.5,
) -> dict[str, Any]:
    """Read every image once, check it, and keep it where crops can be read fast; repeat to bring the store up to date.

    Args:
        data: folder of scans: DICOM, NIfTI, PNG, JPEG, TIFF, NPY, NPZ.
        out: folder of the store.
        manifest: CSV that says what the files are; found by itself where it is the only one.
        columns: what its columns mean, e.g. ``{"image": "images/{file}", "patient": "subject"}``.
        workers: processes.
        max_bad_share: stop when more than this share of the images cannot be used.

    Returns:
        Counts: images, new, refused, set_aside.

    Raises:
        UserError: no usable images, or too many bad ones.
    """
    from ssl_med.data.index import describe_layout, find_images
    from ssl_med.data.prepare import build_store, disk_estimate
    from ssl_med.errors import UserError

    data, out, table = Path(data), Path(out), Path(manifest) if manifest else None
    if not data.exists():
        raise UserError(f"{data} does not exist; give the folder that holds the scans")
    layout = describe_layout(data, table, columns)
    records = list(find_images(data, table, columns))
    need, free = disk_estimate(records, out)
    print(
        f"{layout.name}: {len(records)} images, {need / 1e6:.0f} MB of sources, {free / 1e9:.0f} GB free for the store"
    )
    if need > free:
        raise UserError(f"the store at {out} may need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
    counts = build_store(records, out, list(layout.class_names), workers, max_bad_share)
    for reason, number in counts["refused"].items():
        print(f"  not used: {number} x {reason}")
    if counts["refused"]:
        print(f"  which files these are stands in {out / 'private' / 'quarantine.csv'}")
    print(f"store {out}: {counts['images']} images, {counts['new']} of them new")
    return counts
