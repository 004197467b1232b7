"""The whole job through the command line, as a person does it, with a fact asserted after every step."""

import json
import socket
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stores import SPACING, pictures, save_nifti, volume, volumes

from ssl_med.callbacks.checkpoint_io import is_whole
from ssl_med.cli import main
from ssl_med.data.store import Store

LOOPBACK = ("127.0.0.1", "::1", "localhost")
pytestmark = [
    pytest.mark.filterwarnings("ignore:y_pred contains classes"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:No positive samples|No negative samples"),
]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No way out of this machine; who tries is told off, and the test fails even if nobody minds."""
    tried, connect, look_up = [], socket.socket.connect, socket.getaddrinfo

    def refused(host: object) -> None:
        tried.append(host)
        raise OSError(f"there is no network here: {host}")

    def inside(self, address):
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            refused(address)
        return connect(self, address)

    def known(host, *arguments, **options):
        if host not in LOOPBACK:
            refused(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", inside)
    monkeypatch.setattr(socket, "getaddrinfo", known)
    yield tried
    assert tried == []


def test_the_way_out_is_closed(alone):
    with socket.socket() as here, socket.socket() as there:
        here.bind(("127.0.0.1", 0))
        here.listen()
        there.connect(here.getsockname())
    with pytest.raises(OSError, match="no network here"), socket.socket() as out:
        out.connect(("192.0.2.1", 80))
    with pytest.raises(OSError, match="no network here"):
        socket.create_connection(("example.org", 80))
    assert alone == [("192.0.2.1", 80), "example.org"]
    alone.clear()


def run(*arguments: object) -> None:
    assert main([str(part) for part in arguments]) == 0, arguments


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def pretrain_in_two_goes(work: Path, config: str, capsys, *more: object) -> Path:
    """Take the last checkpoint away, as if the run had been killed after step 5, then repeat the command."""
    base = work / "pretrain"
    command = ["pretrain", config, "--data", work / "store", "--out", base, "--trainer.max_steps", 6]
    command += ["--watch.checkpoint_steps", 2, *more]
    run(*command)
    state = read(base / "run.json")
    (base / "checkpoints" / "step=0000006.ckpt").unlink()
    (base / "run.json").write_text(json.dumps({**state, "status": "running"}))
    weights = (base / "exports" / "backbone" / "backbone.safetensors").read_bytes()
    (base / "exports" / "backbone" / "card.json").unlink()
    capsys.readouterr()
    run(*command)
    assert "at step 4 on" in capsys.readouterr().out
    assert (base / "exports" / "backbone" / "backbone.safetensors").read_bytes() == weights
    state = read(base / "run.json")
    assert (state["status"], state["step"]) == ("finished", 6)
    assert (base / "progress.png").stat().st_size > 1000
    assert len(list((base / "plots").glob("pictures_step=*.png"))) == 2
    log = (base / "train.log").read_text()
    assert "training ssl_med.tasks.MAE" in log
    assert "resuming ssl_med.tasks.MAE at step 4" in log
    assert "step 6/6  loss" in log
    assert str(work) not in log
    assert "finished" in (base / "report.html").read_text()
    return base


def compare(work: Path, config: str, base: Path, metric: str) -> Path:
    """Two labelled patients, both arms; what the table must hold."""
    tuned = work / "finetune"
    run(
        *("finetune", config, "--data", work / "store", "--init", base, "--out", tuned, "--labels", 2),
        *("--compare", "--trainer.max_steps", 3),
    )
    table = read(tuned / "table.json")
    assert [(row["arm"], row["labels"], row["seed"]) for row in table["rows"]] == [
        ("pretrained", 2, 0),
        ("scratch", 2, 0),
    ]
    assert table["metric"] == metric
    assert all(0 <= row["scores"][metric] <= 1 for row in table["rows"])
    assert "too few to say" in table["verdict"]
    before = {p: p.stat().st_mtime_ns for p in tuned.rglob("*.ckpt")}
    run(
        *("finetune", config, "--data", work / "store", "--init", base, "--out", tuned, "--labels", 2),
        *("--compare", "--trainer.max_steps", 3),
    )
    assert {p: p.stat().st_mtime_ns for p in tuned.rglob("*.ckpt")} == before  # finished runs are kept
    return tuned / "pretrained_labels=2_seed=0"


def export_probe_embed(work: Path, base: Path, capsys) -> None:
    run("export", base, "--out", work / "export")
    names = [
        folder / "backbone.safetensors" for folder in (work / "export" / "backbone", base / "exports" / "backbone")
    ]
    assert names[0].read_bytes() == names[1].read_bytes()
    run("embed", work / "export" / "backbone", "--data", work / "store", "--out", work / "features.parquet")
    found, store = pq.read_table(work / "features.parquet").to_pydict(), Store(work / "store")
    assert found["id"] == [row.id for row in store.rows]
    assert found["split"] == [row.split for row in store.rows]
    assert np.isfinite(found["feature"]).all()
    assert np.array(found["feature"]).shape == (len(store), 48)
    assert np.array(found["feature"]).std(0).max() > 0
    capsys.readouterr()
    run("probe", work / "export" / "backbone", "--data", work / "store", "--crops", 6)
    said = capsys.readouterr().out
    assert said.count("random weights") == 2
    assert "balanced accuracy, test" in said


def report(work: Path) -> str:
    run("report", work, "--out", work / "report.html")
    return (work / "report.html").read_text()


def test_images_with_labels(tmp_path, capsys):
    pictures(tmp_path / "scans", 30)
    run("inspect", tmp_path / "scans")
    said = capsys.readouterr().out
    assert "pictures in 2 class folders: left, right" in said
    assert "images 30, usable 30" in " ".join(said.split())
    run("prepare", tmp_path / "scans", "--out", tmp_path / "store")
    store = Store(tmp_path / "store")
    assert (len(store), store.spatial_dims, store.class_names) == (30, 2, ["left", "right"])
    base = pretrain_in_two_goes(tmp_path, "smoke/mae_2d", capsys)
    assert is_whole(base / "checkpoints" / "best-knn.ckpt")
    export_probe_embed(tmp_path, base, capsys)
    tuned = compare(tmp_path, "smoke/classify", base, "balanced_accuracy")
    run("predict", tuned, tmp_path / "scans" / "test", "--out", tmp_path / "out")
    lines = [line.split(",") for line in (tmp_path / "out" / "predictions.csv").read_text().splitlines()]
    assert lines[0] == ["image", "left", "right"]
    files = sorted(
        str(p.relative_to(tmp_path / "scans" / "test")) for p in (tmp_path / "scans" / "test").rglob("*.png")
    )
    assert sorted(line[0] for line in lines[1:]) == files
    assert all(abs(float(line[1]) + float(line[2]) - 1) < 1e-4 for line in lines[1:])
    tested = read(tuned / "test.json")
    expected = np.array(tested["cases"]["probability"])
    assert np.allclose([[float(v) for v in line[1:]] for line in lines[1:]], expected, atol=1e-4)
    page = report(tmp_path)
    assert "too few to say that pretraining helps or harms" in page
    assert "balanced accuracy" in page.lower().replace("_", " ")


def test_volumes_with_masks(tmp_path, capsys):
    volumes(tmp_path / "scans", 10)
    run("inspect", tmp_path / "scans")
    said = " ".join(capsys.readouterr().out.split())
    assert "images 10, usable 10, voxels read of 10" in said
    assert "patients 5" in said
    assert "masks 10" in said
    run("prepare", tmp_path / "scans", "--out", tmp_path / "store")
    store = Store(tmp_path / "store")
    assert (len(store), store.spatial_dims, store.rows[0].mask_values) == (10, 3, [0, 1, 2])
    base = pretrain_in_two_goes(tmp_path, "smoke/mae_3d", capsys, "--watch.probes", 0)
    export_probe_embed(tmp_path, base, capsys)
    tuned = compare(tmp_path, "smoke/segment", base, "dice")
    # a scan of another orientation and size than any in training, smaller than the crop along x
    affine = np.array([[0, 0, -2.0, 9], [-1.5, 0, 0, 8], [0, 1.0, 0, 7], [0, 0, 0, 1]])
    source = save_nifti(tmp_path / "new" / "scan.nii.gz", volume(50, (22, 30, 14))[0], affine)
    run("predict", tuned, source, "--out", tmp_path / "out")
    predicted = nibabel.load(tmp_path / "out" / "scan.nii.gz")
    assert predicted.shape == (22, 30, 14)
    assert np.allclose(predicted.affine, affine)
    assert set(np.unique(np.asarray(predicted.dataobj))) <= {0, 1, 2}
    assert_prediction_is_what_was_scored(tmp_path, tuned)
    page = report(tmp_path)
    assert "too few to say that pretraining helps or harms" in page
    assert "dice" in page.lower()


def assert_prediction_is_what_was_scored(work: Path, tuned: Path) -> None:
    """The Dice of the files that predict writes is the Dice that the table reports."""
    run("predict", tuned, work / "scans" / "images" / "case_8.nii.gz", "--out", work / "again")
    guess = np.asarray(nibabel.load(work / "again" / "case_8.nii.gz").dataobj)
    truth = volume(8)[1]
    assert np.allclose(nibabel.load(work / "again" / "case_8.nii.gz").affine, np.diag([*SPACING, 1]))
    tested, store = read(tuned / "test.json")["cases"], Store(work / "store")
    files = dict(line.split(",") for line in (store.folder / "private" / "sources.csv").read_text().splitlines())
    place = next(n for n, i in enumerate(tested["id"]) if files[i].endswith("case_8.nii.gz"))
    for value in (1, 2):
        dice = 2 * ((guess == value) & (truth == value)).sum() / ((guess == value).sum() + (truth == value).sum())
        assert tested[f"dice_{value}"][place] == pytest.approx(dice, abs=1e-6)


def test_pictures_are_segmented_into_pictures(tmp_path):
    """2D with masks: predictions are PNG of the source's size."""
    from stores import picture

    for number in range(10):
        mask = np.zeros((40, 40), np.uint8)
        mask[5 + number : 20 + number, 8:30] = 255
        image = picture(number, 0) // 2 + mask // 4
        for part, array in (("images", image), ("masks", mask)):
            (tmp_path / "scans" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / "scans" / part / f"{number}.png")
    run("prepare", tmp_path / "scans", "--out", tmp_path / "store")
    steps = ["--trainer.max_steps", 2]
    quiet = ["--watch.probes", 0, "--watch.pictures", 0]
    run("pretrain", "smoke/mae_2d", "--data", tmp_path / "store", "--out", tmp_path / "base", *steps, *quiet)
    arguments = ["--data", tmp_path / "store", "--init", tmp_path / "base", "--out", tmp_path / "tuned", *steps]
    run("finetune", "smoke/segment", *arguments)
    tuned = tmp_path / "tuned" / "pretrained_labels=all_seed=0"
    run("predict", tuned, tmp_path / "scans" / "images" / "3.png", "--out", tmp_path / "out")
    predicted = np.asarray(Image.open(tmp_path / "out" / "3.png"))
    assert predicted.shape == (40, 40)
    assert set(np.unique(predicted)) <= {0, 1}
