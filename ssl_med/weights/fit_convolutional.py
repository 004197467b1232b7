"""Convolutional (and windowed) encoders: same shapes, but for the first layer, the rank and the order of axes."""

from torch import Tensor

from ssl_med.backbones import Backbone, MonaiBackbone
from ssl_med.errors import UserError
from ssl_med.weights import adapt
from ssl_med.weights.adapt import Adapted
from ssl_med.weights.fitted import Fitted, Wishes
from ssl_med.weights.layouts import Translated


def fit_convolutional(source: Translated, into: Backbone, wishes: Wishes) -> Fitted:
    """Take what fits; adapt layers that see the image; kernels change rank together.

    Raises:
        UserError: a wish that this backbone cannot fulfil.
    """
    windowed = isinstance(into, MonaiBackbone) and into.name == "SwinUNETR"
    if windowed and wishes.axes == "reversed":
        raise UserError(
            "axes='reversed': the windows of a SwinUNETR have an order of their own that is not turned; show the "
            "backbone volumes (x, y, z) instead"
        )
    result, own = Fitted(notes=list(source.notes)), into.state_dict()
    seen = _channels_seen(source, into)
    for name, tensor in source.tensors.items():
        theirs = source.origin[name]
        if name not in own:
            result.unplaced[theirs] = f"{type(into).__name__} has no {name}"
            continue
        steps = _steps(tensor, own[name], into.in_channels, seen, wishes)
        if steps[-1].tensor.shape != own[name].shape:
            result.unplaced[theirs] = f"{tuple(tensor.shape)} does not fit {tuple(own[name].shape)}"
            continue
        result.put(name, theirs, *steps, before=source.how.get(name, ""))
    return result


def _channels_seen(source: Translated, into: Backbone) -> int:
    """Input channels of the source: those of the first kernel where the backbone has one over the image."""
    for name, tensor in into.state_dict().items():
        found = source.tensors.get(name)
        if tensor.ndim > 3 and tensor.shape[1] == into.in_channels and found is not None and found.ndim > 3:
            return found.shape[1]
    return into.in_channels


def _steps(tensor: Tensor, own: Tensor, channels: int, seen: int, wishes: Wishes) -> list[Adapted]:
    """What turns one kernel into the backbone's shape, as far as laws go."""
    steps = [Adapted(tensor)]
    if tensor.ndim < 4 or own.ndim < 4:
        return steps
    if wishes.axes == "reversed":
        steps.append(adapt.reverse_axes(steps[-1].tensor))
    if tensor.ndim != own.ndim:
        steps.append(adapt.change_rank(steps[-1].tensor, own.ndim - 2, own.shape[2], wishes.inflate))
    if steps[-1].tensor.shape[1] == seen and own.shape[1] == channels and seen != channels:
        steps.append(adapt.channels(steps[-1].tensor, channels, wishes.channels))
        if steps[-1].tensor.shape[2:] != own.shape[2:]:
            steps.append(adapt.resize_kernel(steps[-1].tensor, tuple(own.shape[2:])))
    return steps
