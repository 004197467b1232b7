"""``ssl-med pretrain``: a pretext task on a store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def pretrain(
    config: str,
    data: str | Path | Sequence[str],
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    resume: str = "auto",
    overwrite: bool = False,
    init_from: str | Path | None = None,
) -> Path:
    """Pretrain a backbone without labels and export it.

    Args:
        config: short name (``mae_3d``) or path of a YAML file.
        data: the store; or several, as a list or with commas between them: their samples are mixed in every batch, or
            come in turn where crops are not of one size, such as images and volumes for one backbone.
        out: folder of the run; repeating the command goes on with an unfinished one.
        overrides: settings by dotted name, e.g. ``{"trainer.max_steps": 100}``.
        resume: ``auto``, ``must`` or ``never``.
        overwrite: remove a run that is there and begin anew.
        init_from: weights to begin with, of ssl_med or of somebody else, see :func:`ssl_med.load_weights`; how they are
            adapted is said by settings such as ``{"init_from.channels": "mean"}``.

    Returns:
        The folder of the run; the backbone is in ``exports/backbone``, one for images and volumes in
        ``exports/backbone_2d`` and ``exports/backbone_3d``.

    Raises:
        UserError: a config that does not fit, a store that is none, or a folder that is taken.
    """
    from ssl_med.config import load_config
    from ssl_med.data.intensity import channels_of
    from ssl_med.data.sections import folders_of, sections_of
    from ssl_med.data.store import Store
    from ssl_med.fit import fit
    from ssl_med.recipe import arguments, locate
    from ssl_med.run_folder import is_leader

    begin = {} if init_from is None else {"init_from.source": str(init_from)}
    loaded = load_config(config, "pretrain", {**begin, **(overrides or {})})
    folders = folders_of(data)
    first = sections_of(loaded.get("data") or {}, folders)[0]
    channels = channels_of(first.get("intensity", "auto"), Store(folders[0]).channels)
    backbone = loaded["task"].get("init_args", {}).get("backbone")
    if isinstance(backbone, dict) and "in_channels" in arguments(locate(backbone["class_path"], "task.backbone")):
        backbone["init_args"] = {"in_channels": channels, **(backbone.get("init_args") or {})}
    folder = fit("pretrain", loaded, folders, out, resume, overwrite)  # pyright: ignore[reportArgumentType]
    if is_leader():  # the others are through before it has written
        for made in sorted((folder / "exports").iterdir()):
            print(f"pretrained: {made}")
    return folder
