import pytest
import torch

from ssl_med.backbones import SharedViT, ViT
from ssl_med.backbones.vit import PatchEmbed, Tokens, of_raw_values, resize_positions
from ssl_med.errors import UserError
from ssl_med.ops.patches import patchify
from ssl_med.recipe import build, recipe


def images(*space: int, count: int = 2, channels: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, *space, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("space", "patch"), [((12, 8), (3, 4)), ((4, 12, 8), (2, 3, 4))])
def test_embedding_is_a_strided_convolution(space: tuple[int, ...], patch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    conv = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[len(patch)](2, 5, patch, patch)
    embed = PatchEmbed(patch, 2, 5)
    with torch.no_grad():
        embed.proj.weight.copy_(conv.weight.movedim(1, -1).flatten(1))
        embed.proj.bias.copy_(conv.bias)
    image = images(*space, channels=2)
    assert torch.allclose(embed(image), conv(image).flatten(2).transpose(1, 2), atol=1e-5)


VARIANTS = {
    "2d": (2, {}),
    "3d slab": (3, {"patch": [2, 4, 4]}),
    "4d": (4, {"patch": [1, 4, 4, 4]}),
    "learned": (2, {"positions": "learned", "grid": [2, 3]}),
    "rotary": (3, {"positions": "rotary"}),
    "none": (2, {"positions": "none"}),
    "no class token": (2, {"class_token": False}),
    "registers": (2, {"registers": 3, "layer_scale": 0.1}),
    "rotary with registers": (2, {"positions": "rotary", "registers": 2}),
    "standardised": (2, {"image_mean": [0.5], "image_std": [0.2]}),
}


@pytest.mark.parametrize(("axes", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_encoding_follows_the_order_of_the_tokens(tiny_vit, axes: int, changes: dict) -> None:
    """Positions travel with the tokens: permuted tokens give permuted features, prefix tokens do not change."""
    vit = tiny_vit(axes, **changes).eval()
    tokens = vit.tokenize(images(*[4] * (axes - 2), 8, 12))
    count = tokens.value.shape[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    straight, permuted = vit.encode(tokens), vit.encode(tokens.keep(order))
    assert straight.shape == (2, vit.prefix + count, 24)
    assert torch.allclose(permuted[:, : vit.prefix], straight[:, : vit.prefix], atol=1e-5)
    assert torch.allclose(permuted[:, vit.prefix :], straight[:, vit.prefix :][:, order[0]], atol=1e-5)
    assert not torch.allclose(permuted[:, vit.prefix :], straight[:, vit.prefix :], atol=1e-3)


@pytest.mark.parametrize(("axes", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_forward_is_tokenize_then_encode(tiny_vit, axes: int, changes: dict) -> None:
    vit, image = tiny_vit(axes, **changes).eval(), images(*[4] * (axes - 2), 8, 12)
    features, encoded = vit(image), vit.encode(vit.tokenize(image))[:, vit.prefix :]
    assert torch.allclose(features.pooled, encoded.mean(1))
    assert torch.allclose(features.maps[-1].flatten(2).transpose(1, 2), encoded)


def test_hidden_tokens_leave_no_trace(tiny_vit) -> None:
    vit, image = tiny_vit(2).eval(), images(8, 8)
    keep = torch.tensor([[0, 3], [1, 3]])
    changed = image.clone()
    changed[:, :, 4:, :4] = 9.0  # patch 2, kept by no sample
    first, second = (vit.encode(vit.tokenize(x).keep(keep)) for x in (image, changed))
    assert torch.equal(first, second)


def test_subset_is_attention_limited_to_it(tiny_vit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding three of six patches equals encoding all while nobody may look at the other three."""
    import ssl_med.backbones.block as block

    vit, image = tiny_vit(2).eval(), images(8, 12)
    keep = torch.tensor([[0, 4, 5]] * 2)
    alone = vit.encode(vit.tokenize(image).keep(keep))
    allowed = torch.tensor([0, 1, 5, 6])  # the class token, then patches 0, 4, 5
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(block, "attend", lambda q, k, v: attend(q, k[:, :, allowed], v[:, :, allowed]))
    assert torch.allclose(vit.encode(vit.tokenize(image))[:, allowed], alone, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "rotary", "learned"])
def test_positions_tell_equal_patches_apart(tiny_vit, positions: str) -> None:
    """A constant image: all patches look alike, only their places differ; without positions they stay alike."""
    image = images(4, 4).tile(1, 1, 2, 3)
    bare = tiny_vit(2, positions="none")(image).maps[-1].flatten(2)
    assert torch.allclose(bare, bare[:, :, :1].expand_as(bare), atol=1e-5)
    if positions == "rotary":  # rotary angles need tokens that differ to show
        image = images(8, 12)
        placed = tiny_vit(2, positions=positions)(image).pooled
        moved = tiny_vit(2, positions=positions)(image.flip(2).unflatten(2, (2, 4)).flip(3).flatten(2, 3)).pooled
        assert (placed - moved).abs().max() > 1e-4
        return
    placed = tiny_vit(2, positions=positions, grid=[2, 3])(image).maps[-1].flatten(2)
    assert (placed[:, :, 1:] - placed[:, :, :1]).abs().amax((0, 1)).min() > 1e-3


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_in_mm_half_the_spacing_is_half_the_reference(tiny_vit, positions: str) -> None:
    image, spacing = images(8, 12), torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    settings = {"positions": positions, "position_unit": "mm"}
    first = tiny_vit(2, reference_mm=16.0, **settings)(image, spacing).pooled
    second = tiny_vit(2, reference_mm=8.0, **settings)(image, spacing / 2).pooled
    assert torch.allclose(first, second, atol=1e-6)
    assert (first - tiny_vit(2, reference_mm=16.0, **settings)(image, spacing * 2).pooled).abs().max() > 1e-4


def test_in_mm_a_patch_of_the_reference_length_counts_one(tiny_vit) -> None:
    image, ones = images(8, 12), torch.ones(2, 2)
    mm = tiny_vit(2, position_unit="mm", reference_mm=4.0)  # patches of 4 voxels of 1 mm
    assert torch.allclose(mm(image, ones).pooled, tiny_vit(2)(image).pooled)
    assert torch.equal(mm.tokenize(image, ones * torch.tensor([2.0, 3.0])).centre[0, -1], torch.tensor([2.0, 6.0]))


def test_in_mm_the_spacing_is_asked_for(tiny_vit) -> None:
    with pytest.raises(ValueError, match="needs the spacing"):
        tiny_vit(2, position_unit="mm")(images(8, 8))


def test_learned_positions_are_added_and_resized(tiny_vit) -> None:
    vit = tiny_vit(2, positions="learned", grid=[2, 3])
    with torch.no_grad():
        vit.patch_embed.proj.weight.zero_()
    assert torch.allclose(vit.tokenize(images(8, 12)).value, vit.pos_embed.expand(2, -1, -1))
    larger = vit.tokenize(images(16, 12)).value[0].reshape(4, 3, 24)
    table = vit.pos_embed[0].reshape(2, 3, 24).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(table, (4, 3), mode="bicubic")[0].permute(1, 2, 0)
    assert torch.allclose(larger, expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [((2, 2), (4, 6)), ((2, 3, 2), (4, 3, 5))])
def test_resized_constant_table_stays_constant(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    table = torch.full((1, int(torch.tensor(old).prod()), 3), 2.5)
    resized = resize_positions(table, old, new)
    assert resized.shape == (1, int(torch.tensor(new).prod()), 3)
    assert torch.allclose(resized, torch.tensor(2.5))


def test_table_of_volumes_is_resized_as_torch_does() -> None:
    table = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(0))
    field = table.reshape(2, 3, 2, 3).permute(3, 0, 1, 2)[None]
    expected = torch.nn.functional.interpolate(field, (4, 5, 3), mode="trilinear")[0].permute(1, 2, 3, 0)
    assert torch.allclose(resize_positions(table, (2, 3, 2), (4, 5, 3))[0], expected.flatten(0, 2), atol=1e-6)


def test_learned_positions_in_time_resize_too(tiny_vit) -> None:
    vit = tiny_vit(4, patch=[1, 4, 4, 4], positions="learned", grid=[2, 1, 1, 1])
    assert vit(images(3, 4, 4, 4)).maps[-1].shape == (2, 24, 3, 1, 1, 1)


def test_maps_are_taken_at_equal_distances(tiny_vit) -> None:
    vit = tiny_vit(2, depth=6, taps=3, class_token=False).eval()
    seen: list[torch.Tensor] = []
    for number in (1, 3, 5):
        vit.blocks[number].register_forward_hook(lambda _, __, out: seen.append(out))
    maps = vit(images(8, 12)).maps
    expected = [*seen[:2], vit.norm(seen[2])]
    for found, tokens in zip(maps, expected, strict=True):
        assert torch.equal(found.flatten(2).transpose(1, 2), tokens)


def test_registers_and_class_token_stand_before_the_patches(tiny_vit) -> None:
    vit = tiny_vit(2, registers=2)
    seen: list[torch.Tensor] = []
    vit.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = vit.tokenize(images(8, 12))
    vit.encode(tokens)
    expected = torch.cat([vit.cls_token.expand(2, -1, -1), vit.reg_token.expand(2, -1, -1), tokens.value], 1)
    assert vit.prefix == 3
    assert torch.equal(seen[0], expected)


def test_stochastic_depth_grows_and_is_off_in_evaluation(tiny_vit) -> None:
    vit = tiny_vit(2, depth=3, drop_path=0.4)
    assert [getattr(b.drop_path, "drop_prob", 0.0) for b in vit.blocks] == pytest.approx([0.0, 0.2, 0.4])
    image = images(8, 8)
    assert not torch.equal(vit(image).pooled, vit(image).pooled)
    vit.eval()
    assert torch.equal(vit(image).pooled, vit(image).pooled)


def test_presets_have_the_published_sizes() -> None:
    """DeiT-S without head, position table and class position: 21.7 M (arXiv 2012.12877, table 1: 22 M with them)."""
    with torch.device("meta"):
        count = sum(p.numel() for p in ViT(2, 16, 3, "small", positions="none").parameters())
    assert count == 12 * (12 * 384**2 + 13 * 384) + (768 + 1) * 384 + 384 + 2 * 384


def test_what_does_not_fit_is_refused(tiny_vit) -> None:
    with pytest.raises(ValueError, match="one size for each of 3 axes"):
        tiny_vit(3, patch=[4, 4])
    with pytest.raises(ValueError, match="need grid"):
        tiny_vit(2, positions="learned")
    with pytest.raises(ValueError, match=r"\(8, 10\) is not divisible by patch \(4, 4\) along axis 1"):
        tiny_vit(2)(images(8, 10))


def test_keep_repeats_shared_centres_per_sample() -> None:
    tokens = Tokens(torch.zeros(2, 3, 4), torch.arange(3.0).reshape(1, 3, 1), (3,))
    kept = tokens.keep(torch.tensor([[2, 0], [1, 1]]))
    assert kept.centre[..., 0].tolist() == [[2, 0], [1, 1]]
    assert kept.grid == (3,)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_what_is_pooled_is_a_setting_that_a_recipe_keeps(tiny_vit, pooling) -> None:
    vit, image = tiny_vit(2, registers=2, pooling=pooling).eval(), images(8, 12)
    features, encoded = vit(image), vit.encode(vit.tokenize(image))
    expected = encoded[:, 0] if pooling == "class" else encoded[:, 3:].mean(1)
    assert torch.equal(features.pooled, expected)
    assert not torch.equal(encoded[:, 0], encoded[:, 3:].mean(1))
    again = build(recipe(vit), ViT)
    again.load_state_dict(vit.state_dict())
    assert torch.equal(again.eval()(image).pooled, expected)


def test_the_pooling_of_a_shared_vit_is_that_of_its_parts() -> None:
    shared = SharedViT(4, 4, embed_dim=24, depth=1, heads=2, pooling="class")
    assert shared.rank(2).pooling == "class"
    assert torch.equal(shared.rank(2)(images(8, 8)).pooled, shared(images(8, 8)).token)


def test_a_missing_class_token_is_not_pooled(tiny_vit) -> None:
    with pytest.raises(UserError, match="needs class_token: true"):
        tiny_vit(2, pooling="class", class_token=False)


def test_images_are_standardised_before_the_first_layer(tiny_vit) -> None:
    mean, std = [0.2, 0.6], [0.1, 0.3]
    torch.manual_seed(0)
    plain = tiny_vit(2, in_channels=2).eval()
    torch.manual_seed(0)
    vit = tiny_vit(2, in_channels=2, image_mean=mean, image_std=std).eval()
    image = images(8, 12, channels=2)
    seen = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(vit(image).pooled, plain(seen).pooled, atol=1e-6)
    assert not torch.allclose(vit(image).pooled, plain(image).pooled, atol=1e-2)
    again = build(recipe(vit), ViT)
    assert (again.image_mean, again.image_std) == (mean, std)
    assert (plain.image_mean, plain.image_std) == (None, None)
    assert not any("mean" in name for name in plain.state_dict())
    again.load_state_dict({**vit.state_dict(), "patch_embed.mean": torch.tensor([0.3, 0.4])})
    assert again.image_mean == pytest.approx([0.3, 0.4])  # what the weights want is what a card says
    assert vit.bfloat16()(image.bfloat16()).pooled.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], None), (None, [1.0]), ([0.5, 0.5], [1.0, 1.0]), ([0.5], [0.0]), ([0.5], [-1.0])]
)
def test_moments_that_do_not_fit_are_refused(tiny_vit, mean, std) -> None:
    with pytest.raises(UserError, match="image_mean"):
        tiny_vit(2, image_mean=mean, image_std=std)


def test_raw_filters_are_the_same_function() -> None:
    embed = PatchEmbed((2, 3, 2), 2, 5, ((0.4, -1.0), (0.2, 3.0)))
    filters = embed.proj.weight.reshape(5, 2, 3, 2, 2).movedim(-1, 1)
    raw, bias = of_raw_values(filters, embed.proj.bias, embed.mean, embed.std)
    image = images(4, 6, 4, channels=2)
    answer = torch.nn.functional.conv3d(image, raw, bias, stride=(2, 3, 2)).flatten(2).transpose(1, 2)
    assert torch.allclose(embed(image), answer, atol=1e-5)


def test_both_embeddings_of_a_shared_vit_standardise() -> None:
    vit = SharedViT(4, 4, embed_dim=24, depth=1, heads=2, taps=1, image_mean=[0.5], image_std=[0.25]).eval()
    for axes in (2, 3):
        image, part = images(*[8] * axes), vit.rank(axes)
        assert (part.image_mean, part.image_std) == ([0.5], [0.25])
        assert torch.equal(part(image).pooled, vit(image).pooled)
        assert torch.allclose(
            vit.embedding(axes)(image), vit.embedding(axes).proj(patchify((image - 0.5) / 0.25, (4,) * axes))
        )
