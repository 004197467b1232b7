"""Panels of images a person should look at: one row per plane, one column per picture."""

from pathlib import Path

import numpy as np

_PLANES = {3: ("axial", "coronal", "sagittal"), 4: ("axial", "coronal", "sagittal")}


def planes(volume: np.ndarray) -> list[np.ndarray]:
    """The middle slice along each axis of (c, \\*space), as (y, x, c); an image is its own only plane.

    Volumes over time show the middle frame. Rows are turned so that up is up: axial with the nose on top, the others
    with the head on top (voxels are RAS, memory order z, y, x).
    """
    while volume.ndim > 4:
        volume = volume[:, volume.shape[1] // 2]
    if volume.ndim == 3:
        return [np.moveaxis(volume, 0, -1)]
    middle = [s // 2 for s in volume.shape[1:]]
    slices = [volume[:, middle[0]], volume[:, :, middle[1]], volume[:, :, :, middle[2]]]
    return [np.moveaxis(s, 0, -1)[::-1] for s in slices]


def panel_png(pictures: dict[str, np.ndarray], path: Path) -> Path:
    """Write one PNG: for each image of the batch its planes as rows, the pictures as columns.

    Args:
        pictures: name -> (b, c, \\*space). All but ``error`` and label maps share the grey scale of the first.
        path: where to.
    """
    from matplotlib.figure import Figure

    first = next(iter(pictures.values()))
    samples, rows = len(first), len(planes(first[0]))
    columns = len(pictures)
    figure = Figure(figsize=(2.2 * columns, 2.2 * samples * rows + 0.3), layout="constrained")
    axes = figure.subplots(samples * rows, columns, squeeze=False)
    for column, (name, images) in enumerate(pictures.items()):
        for sample in range(samples):
            low, high = _range(name, images[sample], first[sample])
            for row, plane in enumerate(planes(images[sample])):
                axis = axes[sample * rows + row][column]
                _show(axis, plane, low, high, "magma" if name == "error" else "gray")
                if sample == row == 0:
                    axis.set_title(name, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=80, format="png")
    temporary.replace(path)
    return path


def _range(name: str, image: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    own = name in ("error", "reference", "prediction")
    source = image if own else reference
    low, high = (0.0, float(source.max())) if own else tuple(np.percentile(source, [0.5, 99.5]).tolist())
    return low, max(high, low + 1e-6)


def _show(axis, plane: np.ndarray, low: float, high: float, colours: str) -> None:
    if plane.shape[-1] == 3:
        axis.imshow(((plane - low) / (high - low)).clip(0, 1))
    else:
        axis.imshow(plane[..., 0], cmap=colours, vmin=low, vmax=high)
    axis.set_axis_off()
