import pytest
import timm
import torch

from ssl_med.backbones import ViT
from ssl_med.backbones.weights import load_timm_vit
from ssl_med.errors import UserError

NAME = "vit_tiny_patch16_224"


def theirs(size: int, channels: int = 3, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=0, img_size=size, in_chans=channels, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, so that a swap would show
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def ours(grid: tuple[int, int], channels: int = 3, **changes) -> ViT:
    torch.manual_seed(1)
    return ViT(2, 16, channels, "tiny", positions="learned", grid=grid, **changes).eval()


@pytest.mark.parametrize("channels", [1, 3])
def test_tokens_are_those_of_timm(channels: int) -> None:
    model, vit = theirs(64, channels), ours((4, 4), channels)
    audit = load_timm_vit(vit, model.state_dict())
    image = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        assert torch.allclose(vit.encode(vit.tokenize(image)), model.forward_features(image), atol=1e-5)
    assert audit.share == 1.0
    assert not audit.missing
    assert not audit.unexpected


def test_table_is_resized_to_another_grid() -> None:
    model, vit = theirs(64), ours((3, 5))
    audit = load_timm_vit(vit, model.state_dict())
    wide = theirs(64)
    with torch.no_grad():
        table = model.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, 4, 4)
        resized = torch.nn.functional.interpolate(table, (3, 5), mode="bicubic").flatten(2).transpose(1, 2)
        wide.set_input_size((48, 80))
        wide.load_state_dict({**model.state_dict(), "pos_embed": torch.cat([model.pos_embed[:, :1], resized], 1)})
        image = torch.randn(1, 3, 48, 80)
        assert torch.allclose(vit.encode(vit.tokenize(image)), wide.forward_features(image), atol=1e-5)
    assert audit.adapted["pos_embed"] == "table 4x4 to (3, 5)"


def test_model_without_class_token() -> None:
    model = theirs(64, class_token=False, global_pool="avg", fc_norm=False)
    vit = ours((4, 4), class_token=False)
    load_timm_vit(vit, model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(vit.encode(vit.tokenize(image)), model.forward_features(image), atol=1e-5)


def test_audit_names_every_parameter_and_every_source() -> None:
    state = theirs(64).state_dict()
    state |= {"head.weight": torch.zeros(5, 192), "strange": torch.zeros(1)}
    state["norm.bias"] = torch.zeros(7)
    vit = ours((4, 4), registers=1)
    audit = load_timm_vit(vit, state)
    own = set(vit.state_dict())
    assert set(audit.loaded) | set(audit.adapted) | set(audit.missing) == own
    assert len(audit.loaded) + len(audit.adapted) + len(audit.missing) == len(own)
    assert set(audit.missing) == {"reg_token", "norm.bias"}
    assert audit.unexpected == ["norm.bias (7,) does not fit (192,)", "head.weight", "strange"]
    assert "patch_embed.proj.weight" in audit.adapted
    total = sum(p.numel() for p in vit.parameters())
    assert audit.share == pytest.approx(1 - (192 + 192) / total)
    for name in ("patch_embed.proj.weight", "reg_token", "norm.bias", "head.weight", "strange"):
        assert name in str(audit)


def test_too_little_is_refused_and_nothing_changes() -> None:
    state = {name: value for name, value in theirs(64).state_dict().items() if not name.startswith("blocks.3")}
    vit = ours((4, 4))
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    with pytest.raises(UserError, match=r"weights cover 9[0-9.]+% of the backbone, at least 95%(.|\n)*blocks.3.attn"):
        load_timm_vit(vit, state)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert load_timm_vit(vit, state, at_least=0.9).share < 0.95


def test_other_number_of_channels_is_adapted_and_said() -> None:
    model, vit = theirs(64), ours((4, 4), channels=1)
    audit = load_timm_vit(vit, model.state_dict())
    assert "3 channels summed, spread over 1" in audit.adapted["patch_embed.proj.weight"]
    grey = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = model.forward_features(grey.expand(-1, 3, -1, -1))
        found = vit.encode(vit.tokenize(grey))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
