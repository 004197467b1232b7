"""A card says what an export is, and its check finds what is wrong with one."""

import hashlib
import json

import pytest
import torch
from exports_of import native
from stores import pictures, store_of

from ssl_med.card_check import check_folder
from ssl_med.cli import main
from ssl_med.errors import UserError
from ssl_med.formats import CLIENTS, convert
from ssl_med.model_card import citation, model_card, seal


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pretraining of two steps, with its labels probed."""
    work = tmp_path_factory.mktemp("card")
    store_of(pictures(work / "in", 12), work / "store")
    steps = ["--trainer.max_steps", "2"]
    command = ["pretrain", "smoke/mae_2d", "--data", str(work / "store"), "--out", str(work / "run"), *steps]
    assert main(command) == 0
    return work / "run"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """That run, exported with its terms."""
    out = tmp_path_factory.mktemp("exported") / "native"
    terms = ["--license", "CC-BY-4.0", "--data_license", "CC0"]
    assert main(["export", str(run), "--out", str(out), *terms]) == 0
    return out / "backbone"


@pytest.fixture
def folder(tmp_path, tiny_vit):
    return native(tiny_vit(2), tmp_path / "native", [16, 16])


def errors(folder) -> list[str]:
    return [f"{finding.where}: {finding.text}" for finding in check_folder(folder) if finding.level == "error"]


def card_of(folder) -> dict:
    return json.loads((folder / "card.json").read_text())


def test_the_export_of_a_run_says_everything(exported, run):
    card = card_of(exported)
    assert card["licence"] == {"code": "Apache-2.0", "weights": "CC-BY-4.0", "data": "CC0"}
    assert card["recipe"]["task"]["class_path"] == "ssl_med.tasks.MAE"
    assert card["recipe"]["data"]["folder"] == "(local path)"
    assert card["compute"]["device"] == "cpu"
    assert card["compute"]["hours"] > 0
    assert card["data"]["fingerprint"]
    assert any("2111.06377" in line for line in card["citation"])
    assert {"probe/knn", "probe/knn_random", "health/effective_rank"} <= set(card["results"])
    listed = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()} - {"card.json"}
    assert set(card["files"]) == listed
    assert "manifest.lock" in listed
    for name, digest in card["files"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    page = (exported / "README.md").read_text()
    for text in ("2111.06377", "CC0", "not a medical device", "Not to be used for", "probe/knn"):
        assert text in page


def test_it_passes_its_check_without_a_note(exported, capsys):
    assert main(["card", "check", str(exported)]) == 0
    assert capsys.readouterr().out == "check: 0 errors, 0 notes\n"


@pytest.mark.parametrize("to", ["timm", "transformers", "torch_export"])
def test_a_run_leaves_for_other_libraries_with_its_card(run, tmp_path, capsys, to):
    assert main(["export", str(run), "--out", str(tmp_path / to), "--to", to, "--license", "MIT"]) == 0
    assert main(["card", "check", str(tmp_path / to)]) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == ["note   card.json licence.data: is not stated", "check: 0 errors, 1 notes"]
    card = card_of(tmp_path / to)
    assert (card["client"]["client"], card["compute"]["device"]) == (to, "cpu")
    assert card["client"]["load"] in (tmp_path / to / "README.md").read_text()
    assert str(tmp_path) not in (tmp_path / to / "README.md").read_text()


@pytest.mark.parametrize("to", [c for c in CLIENTS if c not in ("onnx", "nnunet")])  # these two in tests of their own
def test_every_format_passes(tmp_path, folder, to):
    assert errors(convert(folder, tmp_path / to, to)) == []


def test_what_was_made_for_others_is_not_loaded_as_ours(tmp_path, folder):
    from ssl_med.exports import load_backbone

    with pytest.raises(UserError, match="was made for torch_export"):
        load_backbone(str(convert(folder, tmp_path / "pt2", "torch_export")))


def test_results_of_a_comparison_come_with_their_interval():
    card = {"results": {"difference": {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 5}, "probe/knn": 0.75}}
    page = model_card(card)
    assert "- difference: 0.100 (95 % interval 0.050 to 0.150, n = 5)" in page
    assert "- probe/knn: 0.75" in page
    assert "no interval, n = 1" in model_card({"results": {"difference": {"mean": 0.1, "low": None, "n": 1}}})


def test_citations_come_from_the_task():
    from ssl_med.tasks import DINO, MAE

    assert citation(f"{MAE.__module__}.MAE")[1] == "arXiv:2111.06377, https://arxiv.org/abs/2111.06377"
    assert any("2104.14294" in line for line in citation(f"{DINO.__module__}.DINO"))
    assert citation("no.such.Task") == []


def test_a_changed_an_absent_and_a_foreign_file_are_found(folder):
    (folder / "extra.txt").write_text("hello")
    path = folder / "backbone.safetensors"
    path.write_bytes(path.read_bytes() + b"0")
    (folder / "README.md").unlink()
    assert errors(folder) == [
        "README.md: is absent",
        "backbone.safetensors: is not the file that the card describes: the SHA-256 differs",
        "extra.txt: is not in the card",
    ]


@pytest.mark.parametrize("field", ["input", "training", "data", "use", "licence", "parts"])
def test_a_missing_field_is_found(folder, field):
    card = card_of(folder)
    del card[field]
    (folder / "card.json").write_text(json.dumps(card))
    assert f"card.json {field}: is missing" in errors(folder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/home/someone/scans/a.nii", "names a place of a machine"),
        (r"C:\scans\a.nii", "names a place of a machine"),
        ("1.2.840.113619.2.176.2025.1499492.7391", "holds a DICOM UID"),
        ("doctor.who@clinic.org", "holds an e-mail address"),
    ],
)
def test_traces_of_machines_and_persons_are_found(folder, text, found):
    (folder / "notes.txt").write_text(f"made from {text}")
    seal(folder, {name: value for name, value in card_of(folder).items() if name != "files"})
    said = errors(folder)
    assert any(line.startswith("notes.txt: ") and found in line for line in said)
    assert not any(text in line for line in said)


def test_places_in_binary_files_are_found(folder):
    (folder / "graph.onnx").write_bytes(b"\0\1" * 100 + b"/home/someone/code/vit.py" + b"\0" * 100)
    seal(folder, {name: value for name, value in card_of(folder).items() if name != "files"})
    assert "graph.onnx: holds a place of a machine" in errors(folder)


def test_weights_that_do_not_load_are_found(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "backbone.safetensors"
    weights = load_file(path)
    weights["norm.weight"] = torch.ones(3)
    save_file(weights, path)
    card = card_of(folder)
    card["parts"]["backbone"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    seal(folder, {name: value for name, value in card.items() if name != "files"})
    (said,) = errors(folder)
    assert said.startswith("weights: do not load: ")
    assert "norm.weight" in said


def test_links_and_broken_cards_are_refused(folder, tmp_path):
    (folder / "link.txt").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"link\.txt is a link"):
        check_folder(folder)
    (folder / "link.txt").unlink()
    (folder / "card.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        check_folder(folder)
    (folder / "card.json").unlink()
    with pytest.raises(UserError, match=r"has no card\.json"):
        check_folder(folder)


def test_the_exit_code_tells(folder, capsys):
    (folder / "extra.txt").write_text("hello")
    assert main(["card", "check", str(folder)]) == 1
    assert "error  extra.txt: is not in the card" in capsys.readouterr().out


def test_the_folder_that_export_made_is_taken_for_the_export_in_it(exported, tmp_path, capsys):
    assert main(["card", "check", str(exported.parent)]) == 0
    command = ["export", str(exported.parent), "--out", str(tmp_path / "bundle"), "--to", "monai", "--license", "MIT"]
    assert main(command) == 0
    assert card_of(tmp_path / "bundle")["licence"] == {"code": "Apache-2.0", "weights": "MIT", "data": "CC0"}
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert metadata["copyright"] == "Weights: MIT"
    capsys.readouterr()


def test_a_card_tells_the_step_of_its_weights_and_no_later_results(run, tmp_path):
    import shutil

    early = tmp_path / "early"
    shutil.copytree(run, early)
    whole = early / "checkpoints" / "step=0000002.ckpt"
    state = torch.load(whole, weights_only=True)
    torch.save({**state, "global_step": 1}, early / "checkpoints" / "step=0000001.ckpt")
    digest = hashlib.sha256((early / "checkpoints" / "step=0000001.ckpt").read_bytes()).hexdigest()
    (early / "checkpoints" / "step=0000001.ckpt.sha256").write_text(digest)
    with (early / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "health/late": 1.0}\n')
    command = ["export", str(early), "--out", str(tmp_path / "out"), "--license", "see: LICENCE", "--checkpoint"]
    assert main([*command, str(early / "checkpoints" / "step=0000001.ckpt")]) == 0
    card = card_of(tmp_path / "out" / "backbone")
    assert (card["training"]["steps"], card["training"]["planned_steps"], card["training"]["threads"]) == (1, 2, 1)
    assert "health/late" not in card["results"]
    assert "license: other\n" in (tmp_path / "out" / "backbone" / "README.md").read_text()


def test_a_program_is_checked_without_being_run(tmp_path, folder, monkeypatch):
    written = convert(folder, tmp_path / "pt2", "torch_export")
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("a program was opened"))
    assert errors(written) == []
    (written / "model.pt2").write_bytes(b"no archive")
    seal(written, {name: value for name, value in card_of(written).items() if name != "files"})
    assert errors(written) == ["weights: do not load: model.pt2 is no whole archive"]
