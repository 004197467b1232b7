"""Layouts of weights from elsewhere: one small file each, with a recogniser and a map to our names."""

from collections.abc import Mapping

from torch import Tensor

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.weights.layouts.base import Layout, Translated
from ssl_med.weights.layouts.dinov2 import OfficialDINOv2
from ssl_med.weights.layouts.genesis import Genesis
from ssl_med.weights.layouts.hugging_face import HuggingFaceViT
from ssl_med.weights.layouts.mae import OfficialMAE
from ssl_med.weights.layouts.monai_swin import MonaiSwin
from ssl_med.weights.layouts.monai_vit import MonaiViT
from ssl_med.weights.layouts.nnunet import PlainUNet, Primus, ResEncUNet
from ssl_med.weights.layouts.same_names import ResNet, SameNames
from ssl_med.weights.layouts.timm_vit import TimmViT

LAYOUTS: tuple[Layout, ...] = (
    OfficialMAE(),
    OfficialDINOv2(),
    TimmViT(),
    HuggingFaceViT(),
    MonaiViT(),
    MonaiSwin(),
    ResEncUNet(),
    Genesis(),
    ResNet(),
    PlainUNet(),
    Primus(),
)


def layouts_for(into: Backbone) -> list[Layout]:
    """All layouts; those that know more than the backbone's own names come first."""
    return [*LAYOUTS, SameNames(into)]


def layout_of(state: Mapping[str, Tensor], into: Backbone) -> Layout:
    """The layout of a source that has a place in a backbone.

    Raises:
        UserError: the source belongs into another backbone.
    """
    known = [layout for layout in layouts_for(into) if layout.recognises(state)]
    for layout in known:
        if layout.accepts(into):
            return layout
    raise UserError(
        f"the source is {known[0].name}; its home is {known[0].home}, not {type(into).__name__}"
        if known
        else f"the source is of no known layout for {type(into).__name__}"
    )


__all__ = ["LAYOUTS", "Layout", "Translated", "layout_of", "layouts_for"]
