"""``ssl-med embed``: one feature vector per image, what lies next to what, and a picture of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_med.errors import UserError

COLOURS = ("label", "site", "modality", "dataset", "split")


def embed(
    init: str | Path,
    data: str | Path,
    out: str | Path,
    neighbours: int = 0,
    picture: str | Path | None = None,
    colour: str = "label",
    umap: bool = False,
) -> Path:
    """Write the pooled features of every image of a store.

    Args:
        init: run or export folder with the backbone.
        data: the store.
        out: ``.parquet`` (columns id, split, label, feature) or ``.npz`` (arrays of these names).
        neighbours: so many nearest images of each image (``neighbour`` and ``similarity`` beside the features), and a
            table ``OUT.neighbours.csv``: how often they share its class.
        picture: PNG or SVG of the features on their first two principal axes.
        colour: what the points are coloured by: label, site, modality, dataset, split, or the name of a group of the
            store such as ``scanner``.
        umap: lay the points out by UMAP instead (package ``umap-learn``).

    Returns:
        The file of the features.

    Raises:
        UserError: another suffix, a colour that the store knows nothing of, or UMAP without its package.
    """
    import numpy as np

    from ssl_med.data.module import StoreData
    from ssl_med.evaluate import best_device, embed_images
    from ssl_med.exports import load_backbone, read_card

    out, seen = Path(out), read_card(init)["input"]
    if out.suffix not in (".parquet", ".npz"):
        raise UserError(f"{out}: features are written as .parquet or .npz")
    module = StoreData(str(data), seen["crop"], intensity=seen["intensity"])
    rows = module.store.rows
    painted = colours_of(module.store, colour) if picture else []
    backbone = load_backbone(str(init)).to(best_device()).eval()
    features, ids, labels = embed_images(backbone, module.whole("", backbone.multiple(), rows), module.crop)
    columns: dict[str, Any] = {"id": np.array(ids), "split": np.array([row.split for row in rows])}
    columns |= {"label": labels, "feature": features}
    if neighbours > 0:
        columns |= _neighbours(columns, neighbours, module.store.class_names, out.with_suffix(".neighbours.csv"))
    _write(columns, out)
    print(f"{len(ids)} images, {features.shape[1]} features each: {out}")
    if picture:
        _draw(features, painted, colour, Path(picture), umap)
    return out


def _write(columns: Mapping[str, Any], out: Path) -> None:
    import numpy as np

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}")
    if out.suffix == ".npz":
        with temporary.open("wb") as file:
            np.savez(file, **columns)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({name: values.tolist() for name, values in columns.items()}), temporary)
    temporary.replace(out)


def _neighbours(columns: Mapping[str, Any], count: int, names: Sequence[str], table: Path) -> dict[str, Any]:
    """Ids and similarities of the neighbours of each image; the precision by class goes to a table of its own."""
    from ssl_med.evidence.neighbours import retrieval
    from ssl_med.evidence.words import to_csv
    from ssl_med.files import write_whole

    found = retrieval(columns["feature"], columns["label"], count)
    lines = [
        {"class": names[value] if value < len(names) else str(value), "images": images, f"precision_at_{count}": share}
        for value, (share, images) in found["precision"].items()
    ]
    if lines:
        write_whole(table, to_csv(lines))
        for line in lines:
            share = line[f"precision_at_{count}"]
            print(f"{line['class']:20} {line['images']:>6} images, neighbours of the same class {share:.3f}")
    return {"neighbour": columns["id"][found["places"]], "similarity": found["similarity"]}


def colours_of(store: Any, colour: str) -> list[str]:
    """The group of each image of a store.

    Raises:
        UserError: the store knows no such group.
    """
    rows = store.rows
    if colour == "label":
        names = store.class_names
        return [names[row.label] if 0 <= row.label < len(names) else "unlabelled" for row in rows]
    if colour in COLOURS:
        return [getattr(row, colour) or "unknown" for row in rows]
    groups = [dict(text.split("=", 1) for text in row.groups) for row in rows]
    known = sorted({name for group in groups for name in group})
    if colour not in known:
        raise UserError(f"--colour {colour}: the store knows {', '.join([*COLOURS, *known])}")
    return [group.get(colour, "unknown") for group in groups]


def _draw(features: Any, colours: Sequence[str], colour: str, target: Path, umap: bool) -> None:
    from ssl_med.evidence.figure import draw_points
    from ssl_med.evidence.neighbours import principal_axes

    if target.suffix not in (".png", ".svg"):
        raise UserError(f"--picture {target}: pictures are written as .png or .svg")
    if umap:
        places, names = lay_out(features), ("UMAP 1", "UMAP 2")
    else:
        places, shares = principal_axes(features)
        names = tuple(f"principal axis {n} ({share:.0%} of the variance)" for n, share in enumerate(shares, 1))
    draw_points(places, colours, colour, names, target)
    print(f"picture: {target}")


def lay_out(features: Any) -> Any:
    """Places (n, 2) of features (n, d) by UMAP (McInnes et al., arXiv 1802.03426), the same each time.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise UserError(
            '--umap needs umap-learn: pip install "ssl_med[umap]"; without the option PCA is drawn'
        ) from None
    return UMAP(random_state=0, n_jobs=1).fit_transform(features)
