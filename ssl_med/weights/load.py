"""Any checkpoint into a backbone, audited: it is what it was there, or it is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ssl_med.backbones import Backbone, ViT
from ssl_med.errors import UserError
from ssl_med.weights.adapt import Channels, Inflation
from ssl_med.weights.audit import Audit, Row
from ssl_med.weights.cost import flops_by_parameter
from ssl_med.weights.fit_convolutional import fit_convolutional
from ssl_med.weights.fit_vit import fit_vit
from ssl_med.weights.fitted import Fitted, Wishes
from ssl_med.weights.layouts import layout_of, layouts_for
from ssl_med.weights.parts import Candidate, candidates, choose
from ssl_med.weights.sources import read_source


def load_weights(
    source: str | Path | Mapping[str, Any],
    into: Backbone,
    at_least: float = 0.95,
    channels: Channels = "sum",
    inflate: Inflation | None = None,
    axes: Literal["same", "reversed"] = "same",
    grid: Sequence[int] | None = None,
    part: str | None = None,
    drop: Sequence[str] = (),
) -> Audit:
    """Load weights from anywhere into a backbone; print the audit to see what became of them.

    Args:
        source: an export, run or checkpoint of ssl_med; a .safetensors or PyTorch file; a Hugging Face folder; or a
            state dict.
        into: the backbone; changed only if all goes well.
        at_least: share of the backbone's parameters that must be filled.
        channels: another number of input channels: ``sum``, ``mean`` or ``repeat``, see
            :func:`ssl_med.weights.adapt.channels`.
        inflate: 2D weights in a 3D backbone and back: ``average`` or ``centre``; refused if None.
        axes: ``reversed`` for a source that was trained on volumes (x, y, z); ours are (z, y, x).
        grid: patches along each axis of the source's positions, where they are no square or cube.
        part: which of several models in the source: ``teacher``, ``student``, ...; the published one if None.
        drop: names of the source, ``*`` for any letters, that may be left out although they change the features.

    Raises:
        UserError: nothing fits, too little fits, or a part of the source that changes its features has no place.
    """
    wishes = Wishes(channels, inflate, axes, tuple(grid) if grid else None, tuple(drop))
    read = read_source(source)
    try:
        chosen, others = _choose(read.content, into, part)
        layout = layout_of(chosen.state, into)
        translated = layout.translate(chosen.state, read.facts, into)
        fit = fit_vit if isinstance(into, ViT) else fit_convolutional
        fitted = fit(translated, into, wishes)  # pyright: ignore[reportArgumentType]
    except UserError as error:
        raise UserError(f"{read.name}: {error}") from error
    audit = Audit(read.name, read.sha256, layout.name, ".".join(chosen.label), others, notes=fitted.notes)
    audit.left, audit.unexpected = translated.left, fitted.unplaced
    audit.rows = _rows(into, fitted)
    _refuse(audit, at_least, wishes)
    _take(into, fitted.tensors)
    return audit


def initialised(
    backbone: Backbone,
    source: str,
    at_least: float = 0.95,
    channels: Channels = "sum",
    inflate: Inflation | None = None,
    axes: Literal["same", "reversed"] = "same",
    grid: Sequence[int] | None = None,
    part: str | None = None,
    drop: Sequence[str] = (),
) -> Backbone:
    """A backbone with weights from elsewhere; this function is itself a legal ``class_path``.

    Args:
        backbone: what to fill; the audit stays with it, as ``backbone.audit``.
        source: a path, see :func:`load_weights`, likewise all below.
        at_least: share that must be filled.
        channels: law for another number of channels.
        inflate: law from 2D to 3D and back.
        axes: order of the source's axes.
        grid: of the source's positions.
        part: of the source.
        drop: what may be left out.

    Raises:
        UserError: see :func:`load_weights`.
    """
    audit = load_weights(source, backbone, at_least, channels, inflate, axes, grid, part, drop)
    setattr(backbone, "audit", audit)  # noqa: B010 - no attribute of every backbone
    return backbone


def initialised_vit(
    backbone: ViT,
    source: str,
    at_least: float = 0.95,
    channels: Channels = "sum",
    inflate: Inflation | None = None,
    axes: Literal["same", "reversed"] = "same",
    grid: Sequence[int] | None = None,
    part: str | None = None,
    drop: Sequence[str] = (),
) -> ViT:
    """As :func:`initialised`, for tasks that need a ViT, such as MAE.

    Args:
        backbone: what to fill.
        source: a path, see :func:`load_weights`, likewise all below.
        at_least: share that must be filled.
        channels: law for another number of channels.
        inflate: law from 2D to 3D and back.
        axes: order of the source's axes.
        grid: of the source's positions.
        part: of the source.
        drop: what may be left out.

    Raises:
        UserError: see :func:`load_weights`.
    """
    initialised(backbone, source, at_least, channels, inflate, axes, grid, part, drop)
    return backbone


def _choose(content: Mapping[str, Any], into: Backbone, part: str | None) -> tuple[Candidate, list[str]]:
    """The tensors to load, and the names of other models beside them."""
    layouts = layouts_for(into)
    homes = [layout for layout in layouts if layout.accepts(into)]
    return choose(
        candidates(content),
        lambda state: any(layout.recognises(state) for layout in layouts),
        lambda state: any(layout.recognises(state) for layout in homes),
        part,
    )


def _rows(into: Backbone, fitted: Fitted) -> list[Row]:
    """One row per tensor of the backbone; buffers count no parameters."""
    flops, sizes = flops_by_parameter(into), {name: p.numel() for name, p in into.named_parameters()}
    rows = []
    for name in into.state_dict():
        cost = {"parameters": sizes.get(name, 0), "flops": flops.get(name, 0.0)}
        if name not in fitted.tensors:
            rows.append(Row(name, "missing", **cost))
            continue
        how = fitted.how.get(name, "")
        rows.append(Row(name, "adapted" if how else "loaded", fitted.origin[name], how, **cost))
    return rows


def _refuse(audit: Audit, at_least: float, wishes: Wishes) -> None:
    """Too little, or something that would silently be another network."""
    lost = {name: why for name, why in audit.unexpected.items() if not wishes.may_drop(name)}
    if audit.share < at_least:
        hints = "; ".join(audit.nearest())
        raise UserError(
            f"weights cover {audit.share:.1%} of the backbone, at least {at_least:.0%} is asked; nothing was changed. "
            f"{hints}\n{audit}"
        )
    if lost:
        shown = "; ".join(f"{name}: {why}" for name, why in list(lost.items())[:5])
        names = ", ".join(repr(name) for name in list(lost)[:5])
        raise UserError(
            f"{len(lost)} parts of the source change its features and have no place in the backbone, nothing was "
            f"changed. {shown}. Build the backbone so that they fit, or leave them out on purpose: drop=[{names}]"
            f"{' and so on' if len(lost) > 5 else ''}\n{audit}"
        )


def _take(into: Backbone, tensors: dict[str, Tensor]) -> None:
    """Put the tensors in, in the backbone's own precision."""
    into.load_state_dict({**into.state_dict(), **tensors})
