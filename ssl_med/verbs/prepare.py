"""``ssl-med prepare``: a folder of scans to a store."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ssl_med.data.record import Tiling
    from ssl_med.data.settings import Settings
    from ssl_med.data.spool import Spool


def prepare(
    data: str | Path,
    out: str | Path,
    manifest: str | Path | None = None,
    columns: dict[str, str] | None = None,
    workers: int = 1,
    max_bad_share: float = 0.5,
    layout: str = "auto",
    format: Literal["b2nd", "npy"] = "b2nd",
    crop: int | None = None,
    dtype: Literal["same", "int16"] = "same",
    spacing: Sequence[float] | float | None = None,
    order: int = 1,
    orientation: str = "RAS",
    engine: Literal["processes", "dask"] = "processes",
    scheduler: str = "",
    dataset: str = "",
    tile: int = 512,
    tile_mpp: float = 0.5,
    tissue: float = 0.25,
    saliency: str = "",
    check: bool = False,
    rank: Literal[2, 3] | None = None,
    ignore_label: int | None = None,
) -> dict[str, Any]:
    """Read every image once, check it, and keep it where crops can be read fast; repeat to bring the store up to date.

    Args:
        data: folder of scans.
        out: folder of the store.
        manifest: table that says what the files are; found by itself where it is the only one.
        columns: what its columns mean, e.g. ``{"image": "images/{file}", "patient": "subject"}``, see
            :func:`ssl_med.data.index.find_images`.
        workers: processes.
        max_bad_share: stop as soon as more than this share of the images cannot be used.
        layout: what the folders of a tree mean, see :func:`ssl_med.data.index.plan`.
        format: ``b2nd``: compressed chunks; ``npy``: bare voxels, faster and about three times as large.
        crop: voxels along an axis of the crops that will be read; chunks follow it.
        dtype: ``int16`` stores floats in 65536 steps, ``same`` keeps every value.
        spacing: mm along z, y, x (or y, x) to resample to, 0 to keep an axis, one number for a volume's three axes.
        order: of the interpolation: 0, 1 or 3.
        orientation: of volumes, three letters.
        engine: ``dask`` spreads the work over a cluster.
        scheduler: address or file of its scheduler; without one a cluster on this machine is started.
        dataset: name of the data set, for ``data.weights_by: dataset``, where no column tells; it stays readable.
        tile: pixels along the side of a slide's tiles.
        tile_mpp: micrometres per pixel of a tile.
        tissue: least share of tissue in a tile.
        saliency: also store a saliency map of every image: ``fine_grained``, ``spectral_residual``, ``gradient``,
            ``entropy`` or ``foreground``, or a folder of maps that are there, see :func:`ssl_med.data.maps.with_maps`;
            batches for pretraining then carry it. A change of it reads the images again.
        ignore_label: voxels of this label of the masks count nowhere, such as 255; nnU-Net's label ``ignore`` does so
            by itself.
        check: read every file of a store that is there, and do those images again whose files were damaged.
        rank: of a folder with images and volumes keep images (2) or volumes (3); what there is more of by default.

    Returns:
        Counts: images, new, refused, set_aside; flat_maps where saliency maps were asked for.

    Raises:
        UserError: no usable images, too many bad ones, no room, or a setting that cannot be met.
    """
    from ssl_med.data.index import plan
    from ssl_med.data.journal import private_folder
    from ssl_med.data.maps import maps_folder, with_maps
    from ssl_med.data.prepare import build_store
    from ssl_med.data.settings import Settings
    from ssl_med.data.spool import Spool
    from ssl_med.errors import UserError

    data, out = Path(data), Path(out)
    if not data.exists():
        raise UserError(f"{data} does not exist; give the folder that holds the scans")
    grid = (spacing,) if isinstance(spacing, int | float) else tuple(spacing or ())
    maps = maps_folder(saliency, data)
    kind = "file" if maps else saliency
    settings = Settings(format, crop, dtype, tuple(float(s) for s in grid), order, orientation, kind).check()  # pyright: ignore[reportArgumentType] (check refuses others)
    table = Path(manifest) if manifest else None
    tiling = tiling_of(tile, tile_mpp, tissue)
    found = plan(data, table, columns, layout, dataset, tiling, ignore_label)  # pyright: ignore[reportArgumentType] (plan refuses other layouts)
    for note in found.layout.notes:
        print(f"  note: {note}")
    listed = with_maps(found.records(), maps) if maps else found.records()
    with Spool.of(listed, private_folder(out)) as records:
        _check_room(found.layout.name, records, out, settings)
        counts = build_store(
            records,
            out,
            list(found.layout.class_names),
            workers,
            max_bad_share,
            settings=settings,
            engine=engine,
            scheduler=scheduler,
            mask_names=dict(found.layout.mask_names),
            finding_names=found.layout.finding_names,
            box_names=found.layout.box_names,
            check=check,
            rank=rank,
        )
    _tell(counts, out)
    return counts


def tiling_of(tile: int, tile_mpp: float, tissue: float) -> "Tiling | None":
    """How slides are cut; None for the usual way.

    Raises:
        UserError: a number that makes no tiles.
    """
    from ssl_med.data.record import Tiling
    from ssl_med.errors import UserError

    if tile < 1 or not 0 < tile_mpp < 1000 or not 0 <= tissue <= 1:
        raise UserError(
            f"--tile {tile} --tile_mpp {tile_mpp} --tissue {tissue}: expected pixels, micrometres per pixel and a "
            "share from 0 to 1"
        )
    asked = Tiling(tile, tile_mpp, tissue)
    return None if asked == Tiling() else asked


def _check_room(layout: str, records: "Spool", out: Path, settings: "Settings") -> None:
    """Say what is there and how much the store may need, and refuse to start where it will not fit.

    Raises:
        UserError: not enough room.
    """
    from ssl_med.data.disk import disk_estimate
    from ssl_med.errors import UserError

    need, free = disk_estimate(records, out, settings)
    need = max(0, need - _written(out, settings.format))
    print(f"{layout}: {len(records)} images; the store may need {_size(need)}, {_size(free)} are free there")
    if need > free:
        raise UserError(f"the store at {out} may need {_size(need)}, {_size(free)} are free there: make room")


def _written(out: Path, suffix: str) -> int:
    """Bytes that an earlier run, interrupted or not, has put into the store."""
    files = (path for part in ("images", "masks", "saliency") for path in (out / part).glob(f"*.{suffix}"))
    return sum(path.stat().st_size for path in files)


def _size(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _tell(counts: dict[str, Any], out: Path) -> None:
    for reason, number in counts["refused"].items():
        print(f"  not used: {number} x {reason}")
    if counts["refused"]:
        print(f"  which files these are stands in {out / 'private' / 'quarantine.parquet'}")
    if counts.get("flat_maps"):
        print(f"  {counts['flat_maps']} saliency maps are constant: nothing stands out in these images")
    print(f"store {out}: {counts['images']} images, {counts['new']} of them new")
