"""Every law of adaptation, by what it promises about the response."""

import pytest
import torch
from foreign_models import SMALL, difference, our_vit, shaken, timm_vit, tokens

from ssl_med.backbones import ResidualEncoder, UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.exports import export
from ssl_med.ops.patches import patch_centres
from ssl_med.ops.positions import sincos
from ssl_med.weights import adapt, load_weights


def kernel(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def respond(weights: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Of one patch as large as the image."""
    return (weights * image[None]).flatten(1).sum(1)


@pytest.mark.parametrize(("have", "want"), [(3, 1), (1, 3), (3, 2), (2, 5)])
def test_sum_keeps_the_response_to_an_image_that_is_the_same_in_all_channels(have: int, want: int) -> None:
    old, grey = kernel(4, have, 5, 6), kernel(1, 5, 6)
    new = adapt.channels(old, want, "sum").tensor
    torch.testing.assert_close(respond(new, grey.expand(want, -1, -1)), respond(old, grey.expand(have, -1, -1)))


def test_mean_keeps_the_size_of_the_weights() -> None:
    old, grey = kernel(4, 3, 5, 6), kernel(1, 5, 6)
    new = adapt.channels(old, 2, "mean").tensor
    torch.testing.assert_close(new[:, 0], old.mean(1))
    torch.testing.assert_close(respond(new, grey.expand(2, -1, -1)), 2 / 3 * respond(old, grey.expand(3, -1, -1)))


def test_repeat_is_the_law_of_timm() -> None:
    from timm.models._manipulate import adapt_input_conv

    old = kernel(4, 3, 5, 6).float()
    for want in (2, 5):
        torch.testing.assert_close(adapt.channels(old, want, "repeat").tensor, adapt_input_conv(want, old))


@pytest.mark.parametrize("law", ["sum", "mean", "repeat"])
def test_as_many_channels_are_left_alone(law: str) -> None:
    old = kernel(4, 3, 5, 6)
    assert adapt.channels(old, 3, law) == (old, "")


@pytest.mark.parametrize("size", [(6, 8), (3, 9)])
def test_a_larger_kernel_answers_a_resized_image_as_before(size: tuple[int, int]) -> None:
    old, image = kernel(4, 2, 3, 4), kernel(2, 3, 4)
    resized = torch.nn.functional.interpolate(image[None], size, mode="bilinear")[0]
    found = respond(adapt.resize_kernel(old, size).tensor, resized)
    torch.testing.assert_close(found, respond(old, image))


def test_a_smaller_kernel_is_the_best_in_the_least_squares() -> None:
    """Against the definition: min over w' of the mean square of <x, w> - <Bx, w'> for white noise x, in 3D."""
    old, size = kernel(1, 1, 4, 4, 2), (2, 3, 2)
    basis = torch.eye(32, dtype=torch.float64).reshape(32, 1, 4, 4, 2)
    resizing = torch.nn.functional.interpolate(basis, size, mode="trilinear").flatten(1)  # rows: B of each unit image
    best = torch.linalg.lstsq(resizing, old.flatten()[:, None], driver="gelsd").solution.flatten()
    torch.testing.assert_close(adapt.resize_kernel(old, size).tensor.flatten(), best)


def test_average_answers_a_volume_of_equal_slices_as_one_slice() -> None:
    old, slice_ = kernel(4, 2, 3, 4), kernel(2, 3, 4)
    thick = adapt.change_rank(old, 3, 5, "average").tensor
    torch.testing.assert_close(respond(thick, slice_[:, None].expand(-1, 5, -1, -1)), respond(old, slice_))
    torch.testing.assert_close(adapt.change_rank(thick, 2, 0, "average").tensor, old)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_centre_looks_at_the_middle_slice_only(size: int) -> None:
    old, volume = kernel(4, 2, 3, 4), kernel(2, size, 3, 4)
    thick = adapt.change_rank(old, 3, size, "centre").tensor
    torch.testing.assert_close(respond(thick, volume), respond(old, volume[:, size // 2]))
    torch.testing.assert_close(adapt.change_rank(thick, 2, 0, "centre").tensor, old)


def test_rank_changes_only_when_asked() -> None:
    with pytest.raises(UserError, match="give inflate='average' or inflate='centre'"):
        adapt.change_rank(kernel(4, 2, 3, 4), 3, 5, None)


def test_positions_between_ranks_and_orders() -> None:
    table = kernel(1, 12, 4)
    thick = adapt.positions(table, (3, 4), (2, 3, 4)).tensor
    assert torch.equal(thick.reshape(2, 3, 4, 4)[0], thick.reshape(2, 3, 4, 4)[1])
    torch.testing.assert_close(adapt.positions(thick, (2, 3, 4), (3, 4)).tensor, table)
    turned = adapt.positions(table, (3, 4), (4, 3), reverse=True).tensor
    assert torch.equal(turned.reshape(4, 3, 4), table.reshape(3, 4, 4).transpose(0, 1))
    assert adapt.positions(table, (3, 4), (3, 4)) == (table, "")


def test_rows_of_a_table() -> None:
    assert adapt.grid_of_table(16, 2, 1, None) == (0, (4, 4))
    assert adapt.grid_of_table(17, 2, 1, None) == (1, (4, 4))
    assert adapt.grid_of_table(19, 2, 3, None) == (3, (4, 4))
    assert adapt.grid_of_table(28, 3, 1, None) == (1, (3, 3, 3))
    assert adapt.grid_of_table(25, 3, 1, (2, 3, 4)) == (1, (2, 3, 4))
    with pytest.raises(UserError, match="say grid="):
        adapt.grid_of_table(24, 3, 1, None)


def test_a_vit_of_another_patch_grid_and_channel_count() -> None:
    model, vit = timm_vit(), our_vit((3, 5), 1, patch=16)
    audit = load_weights(model.state_dict(), vit)
    assert "3 channels summed, spread over 1; kernel 8x8 to 16x16" in audit.adapted["patch_embed.proj.weight"]
    assert "table 4x4 to 3x5" in audit.adapted["pos_embed"]
    small, large = our_vit((4, 4)), our_vit((4, 4), 1, patch=16)
    load_weights(model.state_dict(), small)
    load_weights(model.state_dict(), large)
    grey = torch.randn(1, 1, 32, 32)
    blocks = grey.reshape(4, 8, 4, 8).permute(0, 2, 1, 3).reshape(16, 1, 8, 8)  # every patch enlarged by itself
    big = torch.nn.functional.interpolate(blocks, size=(16, 16), mode="bilinear").reshape(4, 4, 16, 16)
    wide = big.permute(0, 2, 1, 3).reshape(1, 1, 64, 64)
    assert difference(tokens(large, wide), tokens(small, grey.expand(-1, 3, -1, -1))) < 1e-4


@pytest.mark.parametrize("law", ["average", "centre"])
def test_a_2d_vit_in_3d_sees_equal_slices_as_one(law: str) -> None:
    flat, vit = our_vit((4, 4)), our_vit((2, 4, 4), 1)
    model = timm_vit()
    load_weights(model.state_dict(), flat)
    load_weights(model.state_dict(), vit, inflate=law)
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = flat.tokenize(image.expand(-1, 3, -1, -1)).value
        found = vit.tokenize(image[:, :, None].expand(-1, -1, 16, -1, -1)).value
    torch.testing.assert_close(found, expected.repeat(1, 2, 1), rtol=1e-4, atol=1e-5)


def test_a_3d_vit_in_2d(tmp_path) -> None:
    """An export's card tells that a linear patch embedding is one of volumes."""
    volume, flat = shaken(our_vit((2, 2, 2), 1)), our_vit((2, 2), 1)
    export({"backbone": volume}, tmp_path, {})
    audit = load_weights(tmp_path, flat, inflate="average")
    assert audit.share == 1.0
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected = volume.patch_embed(image[:, :, None].expand(-1, -1, 8, -1, -1))
        torch.testing.assert_close(flat.patch_embed(image), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_of_another_rank_and_channel_count() -> None:
    flat, deep = (
        shaken(ResidualEncoder(2, 3, [4, 6], 1)),
        ResidualEncoder(3, 1, [4, 6], 1, pooling=[[1] * 3, [1, 2, 2]]),
    )
    audit = load_weights(flat.state_dict(), deep, inflate="centre")
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        expected = flat(image.expand(-1, 3, -1, -1)).maps
        found = deep(image[:, :, None].expand(-1, -1, 4, -1, -1)).maps
    for a, b in zip(found, expected, strict=True):
        assert difference(a, b[:, :, None].expand_as(a)) < 1e-4
    assert "3 channels summed, spread over 1" in audit.adapted["stem.convs.0.conv.weight"]


def test_other_axes_of_convolutions() -> None:
    first, second = shaken(UNetEncoder(3, 2, [4, 6])), UNetEncoder(3, 2, [4, 6])
    load_weights(first.state_dict(), second, axes="reversed")
    image = torch.randn(1, 2, 4, 6, 8)
    with torch.no_grad():
        assert difference(second(image.permute(0, 1, 4, 3, 2)).pooled, first(image).pooled) < 1e-5


def test_a_fixed_table_is_recognised_and_another_is_refused() -> None:
    model = timm_vit().state_dict()
    ours = sincos(patch_centres((4, 4)), 48)[None]
    fixed = ViT(2, 8, 3, **SMALL)
    audit = load_weights({**model, "pos_embed": torch.cat([torch.zeros(1, 1, 48), ours], 1)}, fixed)
    assert "the source's position table is the backbone's fixed one" in audit.notes
    swapped = ours.reshape(1, 4, 4, 48).transpose(1, 2).reshape(1, 16, 48)  # MAE's: the last axis first
    before = {name: value.clone() for name, value in fixed.state_dict().items()}
    for table in (model["pos_embed"], swapped):
        with pytest.raises(UserError, match=r"positions='learned', grid=\[4, 4\]"):
            load_weights({**model, "pos_embed": table}, fixed)
    assert all(torch.equal(value, before[name]) for name, value in fixed.state_dict().items())
    audit = load_weights(model, fixed, drop=["pos_*"])
    assert list(audit.unexpected) == ["pos_embed"]


@pytest.mark.parametrize(
    ("theirs", "ours", "name"),
    [
        ({}, {"class_token": False}, "cls_token"),
        ({"reg_tokens": 2, "no_embed_class": True}, {}, "reg_token"),
    ],
)
def test_tokens_without_a_place_are_refused_or_dropped(theirs: dict, ours: dict, name: str) -> None:
    state = timm_vit(**theirs).state_dict()
    with pytest.raises(UserError, match=rf"drop=\['{name}'\]"):
        load_weights(state, our_vit(**ours))
    audit = load_weights(state, our_vit(**ours), drop=[name])
    assert list(audit.unexpected) == [name]


def test_tokens_that_the_source_does_not_have_stay_and_are_said() -> None:
    state = timm_vit(class_token=False, global_pool="avg", fc_norm=False).state_dict()
    vit = our_vit(registers=2)
    before = vit.reg_token.clone()
    audit = load_weights(state, vit)
    assert torch.equal(vit.reg_token, before)
    assert set(audit.missing) == {"reg_token", "cls_token"}
    assert sum("stays as it was made" in note for note in audit.notes) == 2


def test_linear_patch_embedding_of_ours_with_other_channels(tmp_path) -> None:
    source, vit = shaken(our_vit((2, 2), 3)), our_vit((2, 2), 1)
    export({"backbone": source}, tmp_path, {})
    load_weights(tmp_path, vit)
    image = torch.randn(1, 1, 16, 16)
    assert difference(tokens(vit, image), tokens(source, image.expand(-1, 3, -1, -1))) < 1e-5


@pytest.mark.parametrize(
    "theirs", [{}, {"image_mean": [0.5, 0.2, 0.1], "image_std": [0.2, 0.3, 2.0]}], ids=["raw", "own"]
)
@pytest.mark.parametrize(
    "ours", [{}, {"image_mean": [0.4, 0.4, 0.9], "image_std": [1.0, 0.1, 0.2]}], ids=["raw", "own"]
)
def test_weights_keep_their_answer_however_images_are_standardised(tmp_path, theirs, ours) -> None:
    first, second = shaken(our_vit(**theirs).eval(), 1), our_vit(**ours).eval()
    source = export({"backbone": first}, tmp_path / "first", {})
    audit = load_weights(source, second)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(second(image).pooled, first(image).pooled, atol=1e-5)
    if theirs and ours:
        assert second.image_mean == pytest.approx(theirs["image_mean"])
    if theirs and not ours:
        assert audit.left["patch_embed.mean"] == "multiplied into the patch embedding"
    if ours and not theirs:
        assert second.image_mean == [0.0, 0.0, 0.0]
        assert "takes values as they are" in str(audit)


def test_standardised_weights_in_a_backbone_of_other_channels(tmp_path) -> None:
    moments = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3}
    first, second = shaken(our_vit(**moments).eval(), 1), our_vit(channels=1, image_mean=[0.1], image_std=[0.7]).eval()
    load_weights(export({"backbone": first}, tmp_path / "first", {}), second, channels="sum")
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(second(image).pooled, first(image.expand(-1, 3, -1, -1)).pooled, atol=1e-5)
