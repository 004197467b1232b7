"""Nothing leaves unasked, and nothing comes in that is changed or that may run code. A folder plays the hub."""

import io
import json
import pickle
import zipfile

import pytest
import torch
from exports_of import native

from ssl_med.cli import main
from ssl_med.errors import UserError
from ssl_med.exports import load_backbone
from ssl_med.formats import convert
from ssl_med.model_card import seal
from ssl_med.verbs.hub import pull, push


@pytest.fixture
def folder(tmp_path, tiny_vit):
    return native(tiny_vit(3), tmp_path / "native", [8, 8, 8])


@pytest.fixture
def hub(tmp_path):
    return tmp_path / "hub" / "model"


def test_nothing_is_sent_unasked(folder, hub, capsys):
    assert main(["push", str(folder), "--to", str(hub)]) == 0
    said = capsys.readouterr().out
    assert "backbone.safetensors" in said
    assert "nothing was sent: 3 files would go to" in said
    assert not hub.exists()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_there_and_back(folder, hub, tmp_path, scheme):
    assert main(["push", str(folder), "--to", f"{scheme}{hub}", "--yes"]) == 0
    assert main(["pull", f"{scheme}{hub}", "--out", str(tmp_path / "back")]) == 0
    assert {p.name for p in (tmp_path / "back").iterdir()} == {"backbone.safetensors", "card.json", "README.md"}
    ours, back = load_backbone(str(folder)).state_dict(), load_backbone(str(tmp_path / "back")).state_dict()
    assert all(torch.equal(ours[name], back[name]) for name in ours)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_bundle_goes_there_and_back(folder, hub, tmp_path):
    push(convert(folder, tmp_path / "bundle", "monai"), str(hub), yes=True)
    assert (pull(str(hub), tmp_path / "back") / "models" / "model.pt").is_file()


def test_a_folder_that_fails_its_check_stays(folder, hub):
    (folder / "patients.txt").write_text("someone")
    with pytest.raises(UserError, match=r"not fit to be sent: error  patients\.txt: is not in the card"):
        push(folder, str(hub), yes=True)
    assert not hub.exists()


def test_a_target_in_use_is_left_alone(folder, hub, tmp_path):
    push(folder, str(hub), yes=True)
    with pytest.raises(UserError, match="is not empty"):
        push(folder, str(hub), yes=True)
    with pytest.raises(UserError, match="is not empty"):
        pull(str(hub), folder)
    with pytest.raises(UserError, match="holds no export"):
        pull(str(tmp_path / "nowhere"), tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda hub: (hub / "README.md").write_text("other"), "SHA-256 differs"),
        (lambda hub: (hub / "README.md").unlink(), r"README\.md: is absent"),
        (lambda hub: (hub / "run.py").write_text("print()"), r"run\.py: is not in the card"),
    ],
)
def test_what_was_changed_on_the_way_is_refused(folder, hub, tmp_path, change, reason):
    push(folder, str(hub), yes=True)
    change(hub)
    with pytest.raises(UserError, match=reason):
        pull(str(hub), tmp_path / "back")
    assert not (tmp_path / "back").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def as_torch_file(payload: bytes) -> bytes:
    """A file as torch.save writes it, around a pickle of somebody's choice."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")
    return content.getvalue()


@pytest.mark.parametrize("name", ["weights.pkl", "pytorch_model.bin", "a/model.pth", "x.CKPT", "model.pt", "model.pt2"])
@pytest.mark.parametrize("packed", [False, True])
def test_pickles_are_refused_though_the_card_lists_them_and_nothing_runs(folder, hub, tmp_path, name, packed):
    push(folder, str(hub), yes=True)
    trap = pickle.dumps({"weight": Trap(tmp_path / "sprung")})
    (hub / name).parent.mkdir(exist_ok=True)
    (hub / name).write_bytes(as_torch_file(trap) if packed else trap)
    card = json.loads((hub / "card.json").read_text())
    seal(hub, {key: value for key, value in card.items() if key != "files"})
    with pytest.raises(UserError, match="refused"):
        pull(str(hub), tmp_path / "back")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "back").exists()


def test_links_are_refused(folder, hub, tmp_path):
    push(folder, str(hub), yes=True)
    (hub / "secrets.txt").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        pull(str(hub), tmp_path / "back")
