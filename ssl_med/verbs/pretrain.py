"""``ssl-med pretrain``: a pretext task on a store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def pretrain(
    config: str,
    data: str | Path,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    resume: str = "auto",
    overwrite: bool = False,
    init_from: str | Path | None = None,
) -> Path:
    """Pretrain a backbone without labels and export it.

    Args:
        config: short name (``mae_3d``) or path of a YAML file.
        data: the store.
        out: folder of the run; repeating the command goes on with an unfinished one.
        overrides: settings by dotted name, e.g. ``{"trainer.max_steps": 100}``.
        resume: ``auto``, ``must`` or ``never``.
        overwrite: remove a run that is there and begin anew.
        init_from: weights to begin with, of ssl_med or of somebody else, see :func:`ssl_med.load_weights`; how they are
            adapted is said by settings such as ``{"init_from.channels": "mean"}``.

    Returns:
        The folder of the run; the backbone is in ``exports/backbone``.

    Raises:
        UserError: a config that does not fit, a store that is none, or a folder that is taken.
    """
    from ssl_med.config import load_config
    from ssl_med.data.intensity import channels_of
    from ssl_med.data.store import Store
    from ssl_med.fit import fit
    from ssl_med.recipe import arguments, locate

    begin = {} if init_from is None else {"init_from.source": str(init_from)}
    loaded = load_config(config, "pretrain", {**begin, **(overrides or {})})
    channels = channels_of((loaded.get("data") or {}).get("intensity", "auto"), Store(data).channels)
    backbone = loaded["task"].get("init_args", {}).get("backbone")
    if isinstance(backbone, dict) and "in_channels" in arguments(locate(backbone["class_path"], "task.backbone")):
        backbone["init_args"] = {"in_channels": channels, **(backbone.get("init_args") or {})}
    folder = fit("pretrain", loaded, str(data), out, resume, overwrite)  # pyright: ignore[reportArgumentType]
    print(f"pretrained: {folder / 'exports' / 'backbone'}")
    return folder
