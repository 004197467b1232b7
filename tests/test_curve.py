"""A whole study on synthetic pictures in seconds: its files, its cache, a kill in the middle, and a null result."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file
from stores import pictures, save_nifti, store_of, volumes
from timm.models import VisionTransformer, create_model

from ssl_med.cli import main
from ssl_med.config import load_config
from ssl_med.data.store import Store
from ssl_med.errors import UserError
from ssl_med.evidence.planning import Job
from ssl_med.exports import read_card
from ssl_med.verbs.arms import arm_config, check_leak, labelled_data
from ssl_med.verbs.curve import _other
from ssl_med.verbs.embed import colours_of
from ssl_med.verbs.findings import few_draws, lost_structures
from ssl_med.verbs.finetune import ARMS
from ssl_med.verbs.groups import groups_of_rows, groups_of_table

pytestmark = pytest.mark.filterwarnings("ignore:No positive samples|No negative samples")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store of 60 pictures of two classes, 36 to train and 12 to test on, and a backbone."""
    folder = tmp_path_factory.mktemp("curve")
    store_of(pictures(folder / "scans", 60), folder / "store")
    command = ["pretrain", "smoke/mae_2d", "--data", folder / "store", "--out", folder / "base"]
    run(*command, "--trainer.max_steps", 2, "--watch.probes", 0, "--watch.pictures", 0, "--watch.health", 0)
    return folder


def run(*arguments: object) -> None:
    assert main([str(part) for part in arguments]) == 0, arguments


def command(work: Path, out: str, *more: object) -> list[object]:
    fixed = ["curve", "smoke/classify", "--data", work / "store", "--init", work / "base", "--out", work / out]
    fast = ["--resamples", 100, "--trainer.max_steps", 2, "--watch.validate", 0, "--watch.pictures", 0]
    return [*fixed, *fast, *more]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def lines_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scored(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/test.json")}


@pytest.fixture(scope="module")
def whole(work):
    """A study of scratch alone, in one go."""
    run(*command(work, "whole", *SCRATCH))
    return work / "whole"


ONCE = ("--draws", 1, "--seeds", 1)
SCRATCH = ("--arms", "scratch", "--labels", "4,8", *ONCE)


def test_a_study_leaves_tables_words_and_pictures(work, capsys):
    run(*command(work, "study", "--labels", "4,100%", "--draws", 2, "--seeds", 1, "--longer", 2), "--dry_run")
    said = capsys.readouterr().out
    # five trained arms x 2 x 2 of two steps, one of them of four; votes of one and of two sets of features
    assert "23 pieces of work, 23 to do, 48 optimiser steps: no run to estimate from yet" in said
    assert not (work / "study").exists()
    run(*command(work, "study", "--labels", "4,100%", *ONCE, "--arms", "pretrained,scratch,frozen,knn", *FLOOR))
    said = capsys.readouterr().out
    assert "10 of 10" in said
    assert "left\n" in said
    assert "step 2/2" not in said  # the runs speak into their logs
    found = read(work / "study" / "curve.json")
    arms = ["pretrained", "scratch", "frozen", "frozen_random", "knn", "knn_random"]
    assert list(dict.fromkeys(entry["arm"] for entry in found["arms"])) == arms
    assert (found["labels"], found["test_patients"], found["test_cases"]) == ([4, 36], 12, 12)
    assert any("no patient and no image of the test is in the pretraining" in line for line in found["leakage"])
    assert any(line.startswith("train: no patient and no image of the test is in train") for line in found["leakage"])
    assert {entry["arm"]: entry["steps"] for entry in found["compute"]} == dict.fromkeys(arms[:4], 4) | {
        "knn": 0,
        "knn_random": 0,
    }
    for name in ("curve.png", "curve.svg", "curve.md", "curve.csv", "comparisons.csv", "subgroups.csv", "runs.csv"):
        assert (work / "study" / name).stat().st_size > 100, name
    check_runs(work / "study", found)
    page = (work / "study" / "report.html").read_text()
    assert page.count("<h2>") == 3  # summary, the study, how to read: the runs inside have no chapters of their own
    assert found["verdict"].split(" (")[0] in page
    assert str(work) not in page + (work / "study" / "curve.md").read_text() + json.dumps(found)


FLOOR = ("--floor", "ridge=0.6")


def check_runs(folder: Path, found: dict) -> None:
    """The table of runs agrees with what the tasks recorded, and means with the table."""
    lines = lines_of(folder / "runs.csv")
    assert len(lines) == 12
    for line in lines:
        kept = read(folder / "runs" / line["run"] / "test.json")
        if kept["scores"]:
            assert float(line["balanced_accuracy"]) == pytest.approx(kept["scores"]["balanced_accuracy"], abs=1e-5)
    own = [float(line["balanced_accuracy"]) for line in lines if (line["arm"], line["labels"]) == ("frozen", "36")]
    mean = next(e["mean"] for e in found["arms"] if (e["arm"], e["labels"]) == ("frozen", 36))
    assert mean == pytest.approx(np.mean(own))
    assert not list(folder.glob("runs/*/checkpoints"))
    assert not list(folder.glob("runs/*/exports"))


def test_finished_runs_are_found_again_whatever_else_is_asked(work, whole, capsys):
    copy = shutil.copytree(whole, work / "elsewhere" / "again")
    asked = command(work, "elsewhere/again", "--arms", "scratch", *ONCE)
    run(*asked, "--labels", "4,8,16", "--data.num_workers", 0, "--watch.checkpoint_minutes", 3)
    assert "2 of 3 pieces of work are done already" in capsys.readouterr().out
    before, after = scored(whole), scored(copy)
    assert {name: after[name] for name in before} == before
    assert len(after) == 3
    run(*asked, "--labels", "4,8", "--learner.lr", 0.01, "--dry_run")
    assert "2 to do" in capsys.readouterr().out  # another rate is another run


def without_times(found: dict) -> dict:
    return {name: value for name, value in found.items() if not name.startswith("compute")}


def test_a_killed_study_goes_on_and_ends_as_one_that_was_not(work, whole):
    asked = command(work, "killed", *SCRATCH)
    child = os.fork()
    if child == 0:  # the study, to be killed after its first run
        try:
            main([str(part) for part in asked])
        finally:
            os._exit(0)
    until = time.monotonic() + 60
    while not scored(work / "killed") and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = scored(work / "killed")
    assert len(before) == 1
    assert not (work / "killed" / "curve.json").exists()
    assert read(work / "killed" / "run.json")["status"] == "running"
    run(*asked)
    after = scored(work / "killed")
    assert {name: after[name] for name in before} == before
    assert without_times(read(work / "killed" / "curve.json")) == without_times(read(whole / "curve.json"))
    assert sorted(scored(whole)) == sorted(after)  # the names do not depend on the place


def test_several_at_a_time_give_the_same(work, whole):
    run(*command(work, "pool", *SCRATCH, "--processes", 2))
    pool, one = read(work / "pool" / "curve.json"), read(whole / "curve.json")
    assert without_times(pool) == without_times(one)
    assert not list((work / "pool").glob("runs/*/checkpoints"))


def test_identical_arms_are_no_difference(work):
    """The same export under two names shares its run, and the study says that nothing was shown."""
    run(*command(work, "twins", "--arms", "pretrained", "--arm", f"twin={work / 'base'}", "--labels", "4", *ONCE))
    found = read(work / "twins" / "curve.json")
    assert len(scored(work / "twins")) == 1
    (entry,) = found["comparisons"]
    assert (entry["arm"], entry["baseline"]) == ("pretrained", "twin")
    assert (entry["mean"], entry["low"], entry["high"], entry["p"], entry["shown"]) == (0, 0, 0, 1, False)


def test_an_export_in_a_folder_of_its_own_is_known_as_ours(work, tmp_path):
    """So its pretraining is compared with the test images, its decoder kept, and other architectures are taken."""
    run("export", work / "base", "--out", tmp_path / "kept")
    base = load_config("smoke/classify", "finetune", {})
    for folder in ("kept", "kept/backbone"):
        arm, said = _other("theirs", str(tmp_path / folder), str(work / "base"))
        assert (arm.source, arm.like, said) == (str(tmp_path / folder), "", [])
        assert check_leak(labelled_data(str(work / "store"), base), arm.source, True).recorded
    run("export", tmp_path / "kept", "--out", tmp_path / "timm", "--to", "timm")
    arm, said = _other("theirs", str(tmp_path / "timm"), str(work / "base"))
    assert arm.like == str(work / "base")
    assert "fill 100.0%" in said[0]


def test_weights_of_somebody_else_are_an_arm_with_their_own_positions(work, capsys):
    """A ViT as timm saves it, with a table of positions; its name does not make it a vote."""
    recipe = read_card(work / "base")["parts"]["backbone"]["init_args"]
    made = {"embed_dim": recipe["embed_dim"], "depth": recipe["depth"], "num_heads": recipe["heads"]}
    model = VisionTransformer(img_size=24, patch_size=recipe["patch"][0], in_chans=1, num_classes=3, **made)
    save_file(model.state_dict(), work / "timm.safetensors")
    run(*command(work, "foreign", "--arms", "scratch", "--arm", f"knn_timm={work / 'timm.safetensors'}", *FOUR))
    assert "knn_timm: weights of somebody else fill 100.0% of the backbone's parameters" in capsys.readouterr().out
    found = read(work / "foreign" / "curve.json")
    assert {entry["arm"]: entry["steps"] for entry in found["compute"]} == {"scratch": 2, "knn_timm": 2}
    assert "knn_timm: what these weights have seen is not known" in found["leakage"]
    assert str(work) not in json.dumps(found)


def test_a_network_of_timm_stands_beside_another_architecture(work, capsys):
    save_file(create_model("resnet10t").state_dict(), work / "imagenet.safetensors")
    named = ["--arm", f"imagenet=timm:resnet10t:{work / 'imagenet.safetensors'}", "--arm", "resnet=timm:resnet10t"]
    run(*command(work, "networks", "--arms", "pretrained", *named, *FOUR))
    found = read(work / "networks" / "curve.json")
    assert {entry["arm"]: entry["steps"] for entry in found["compute"]} == dict.fromkeys(
        ("pretrained", "imagenet", "resnet"), 2
    )
    told = [note for note in found["notes"] if "another architecture than that of the other arms (ViT with" in note]
    assert [note.split(" timm's")[0] for note in told] == [
        "imagenet: weights of somebody else fill 100.0% of",
        "resnet: random weights in",
    ]
    assert "imagenet: what these weights have seen is not known" in found["leakage"]
    assert not any("resnet:" in line for line in found["leakage"])
    assert str(work) not in json.dumps(found)


FOUR = ("--labels", "4", *ONCE)


def test_grades_are_studied_with_votes(work):
    """A vote knows no grade, only probabilities."""
    asked = command(work, "grades", "--arms", "pretrained,knn", "--labels", "6", *ONCE)
    asked[1] = "smoke/ordinal"
    run(*asked, "--task.classes", 3)
    found = read(work / "grades" / "curve.json")
    assert found["metric"] == "quadratic_kappa"
    assert {arm["arm"] for arm in found["arms"]} == {"pretrained", "knn", "knn_random"}


def test_how_often_validation_chooses_is_part_of_a_run(work, whole, capsys):
    asked = [*command(work, "whole", *SCRATCH), "--dry_run"]
    run(*asked)
    assert "0 to do" in capsys.readouterr().out
    run(*asked, "--watch.validate", 2)
    assert "2 to do" in capsys.readouterr().out


def test_random_weights_are_not_slowed_by_what_protects_good_ones(work):
    base = load_config("smoke/classify", "finetune", {"learner.layer_decay": 0.5})
    rates = [arm_config(base, str(work / "store"), str(work / "base"), arm, 4, 0)["learner"] for arm in ARMS]
    assert [rate["layer_decay"] for rate in rates] == [0.5, 1.0]


def test_an_image_in_training_and_test_stops_the_study(work, tmp_path, capsys):
    shutil.copytree(work / "scans", tmp_path / "scans")
    shutil.copy(next((tmp_path / "scans" / "train" / "left").iterdir()), tmp_path / "scans" / "test" / "left" / "a.png")
    store_of(tmp_path / "scans", tmp_path / "store")
    asked = [*command(work, "shared", "--arms", "scratch", *FOUR), "--data", tmp_path / "store", "--dry_run"]
    assert main([str(part) for part in asked]) == 2
    assert "train: 1 test images are in train too, voxel by voxel" in capsys.readouterr().err
    run(*asked, "--allow_overlap")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--labels", "500"), "has 36 labelled patients"),
        (("--labels", "1"), "the task needs 2"),
        (("--arms", "pretrainde"), "there is no 'pretrainde'"),
        (("--arm", "twin"), "write NAME=VALUE"),
        (("--arm", "knn=x"), "this name is taken"),
        (("--floor", "ridge=high"), "must be a number"),
        (("--data.labels", 3), "use --labels"),
        (("--draws", 0), "at least one"),
        (("--processes", 0), "at least one process"),
        (("--arm", "a=x", "--arm", "a=y"), "given twice"),
        (("--arm", "a=/nowhere.pt"), "is neither a file nor a folder"),
        (("--arm", "a=timm:resnet10"), "did you mean resnet10t"),
        (("--arm", "a=timm:resnet10t:/nowhere.pt"), "--arm a: /nowhere.pt is neither a file nor a folder"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(work, capsys, more, message):
    assert main([str(part) for part in command(work, "wrong", *more)]) == 2
    assert message in capsys.readouterr().err
    assert not (work / "wrong").exists()


def test_masks_are_studied_too_with_bands_of_size(tmp_path, capsys):
    volumes(tmp_path / "scans", 20)
    store_of(tmp_path / "scans", tmp_path / "store")
    quiet = ["--watch.probes", 0, "--watch.pictures", 0, "--watch.health", 0]
    run(
        "pretrain",
        "smoke/mae_3d",
        "--data",
        tmp_path / "store",
        "--out",
        tmp_path / "base",
        "--trainer.max_steps",
        1,
        *quiet,
    )
    asked = [
        "curve",
        "smoke/segment",
        "--data",
        tmp_path / "store",
        "--init",
        tmp_path / "base",
        "--out",
        tmp_path / "out",
    ]
    few = ["--labels", "2", "--draws", 1, "--seeds", 1, "--arms", "pretrained,scratch,knn", "--resamples", 50]
    run(*asked, *few, "--trainer.max_steps", 1, "--watch.validate", 0, "--watch.pictures", 0)
    assert "knn is left out: it needs one class per image" in capsys.readouterr().out
    found = read(tmp_path / "out" / "curve.json")
    assert found["metric"] == "dice"
    assert found["test_patients"] == 2  # four images of two patients: an image is no independent case
    assert found["test_cases"] == 4
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No difference" in page or "no difference" in page


def test_masks_are_grouped_by_the_size_of_what_is_outlined(tmp_path):
    scans = volumes(tmp_path / "scans", 20)
    for number in range(20):
        mask = np.zeros((20, 22, 24), np.uint8)
        mask[: 1 + number % 10, :10, :10] = 1 + number % 2  # 100 voxels of 3 mm3 for each slice
        save_nifti(scans / "labels" / f"case_{number}.nii.gz", mask)
    store = store_of(scans, tmp_path / "store")
    rows = list(store.rows)
    groups = groups_of_rows(store, rows, "mask")["outlined size (ml)"]
    volume = [float((store.read(row, "masks") > 0).sum()) * 0.003 for row in rows]
    by_group = {name: [v for v, group in zip(volume, groups, strict=True) if group == name] for name in set(groups)}
    assert len(by_group) == 3
    low, middle, high = sorted(by_group.values(), key=min)
    assert max(low) < min(middle) <= max(middle) < min(high)
    assert max(high) == pytest.approx(3.0)
    assert "outlined size (ml)" not in groups_of_rows(store, rows, None)


def test_runs_that_lost_a_structure_are_named():
    scores = {"dice": 0.4, "dice_1": 0.79, "dice_2": 0.01, "dice_2_small": 0.0}
    runs = [(Job("scratch", 9, 3, 0), {"scores": scores}), (Job("scratch", 9, 4, 0), {"scores": {"dice_1": 0.1}})]
    (told,) = lost_structures(runs)
    assert told.startswith(
        "structures that a run lost (Dice below 0.1): scratch, 9 labels, draw 3, seed 0 (dice_2 0.01)."
    )
    assert "and 2 more" in lost_structures([runs[0]] * 6)[0]
    assert lost_structures(runs[1:]) == []


def test_few_draws_are_named():
    runs = [(Job("scratch", 9, draw, 0), {}) for draw in range(5)]
    assert few_draws(runs) == []
    (told,) = few_draws(runs[:3])
    assert told.startswith("labelled cases were drawn 3 times")
    assert "--draws 10" in told
    assert "drawn 1 time:" in few_draws(runs[:1])[0]


def test_groups_of_a_table_are_found_by_the_names_of_the_user(work, tmp_path):
    store = Store(work / "store")
    rows = list(store.rows.where(split="test"))
    table = tmp_path / "groups.csv"
    table.write_text("id,scanner,age\n" + "".join(f"{row.id},{'AB'[n % 2]},{20 + n}\n" for n, row in enumerate(rows)))
    found = groups_of_table(table, store, rows)
    assert found["scanner"] == ["A", "B"] * 6
    assert [found["age"].count(name) for name in dict.fromkeys(found["age"])] == [4, 4, 4]
    files = sorted(path.relative_to(work / "scans").as_posix() for path in (work / "scans").glob("test/*/*.png"))
    table.write_text("image,scanner\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in files))
    sides = groups_of_table(table, store, rows)["scanner"]
    assert sides == [store.class_names[row.label] for row in rows]
    table.write_text("id,age\n" + "".join(f"{row.id},{'NA' if n == 0 else 20 + n % 8}\n" for n, row in enumerate(rows)))
    assert groups_of_table(table, store, rows)["age"][0] == ""  # one unknown age does not turn ages into names
    table.write_text("id,name\n" + "".join(f"{row.id},Patient {n}\n" for n, row in enumerate(rows)))
    with pytest.raises(UserError, match="column 'name' tells nearly every patient apart"):
        groups_of_table(table, store, rows)
    table.write_text("name,scanner\nx,A\n")
    with pytest.raises(UserError, match="one column must be named id, patient or image"):
        groups_of_table(table, store, rows)
    table.write_text("id,scanner\nx,A\n")
    with pytest.raises(UserError, match="no line names a id of the test split"):
        groups_of_table(table, store, rows)


def test_points_are_coloured_by_label_site_or_any_group():
    rows = [
        SimpleNamespace(label=label, site=site, split="train", groups=(f"scanner={scanner}", f"age={40 + label}"))
        for label, site, scanner in ((1, "north", "A"), (0, "", "B"), (-1, "south", "A"))
    ]
    store = SimpleNamespace(rows=rows, class_names=["left", "right"])
    assert colours_of(store, "label") == ["right", "left", "unlabelled"]
    assert colours_of(store, "site") == ["north", "unknown", "south"]
    assert colours_of(store, "scanner") == ["A", "B", "A"]
    with pytest.raises(UserError, match=r"the store knows label, site, .*age, scanner"):
        colours_of(store, "mood")


def test_embed_writes_neighbours_and_a_picture(work, tmp_path, capsys):
    out = tmp_path / "features.parquet"
    fixed = ["embed", work / "base", "--data", work / "store", "--out", out]
    run(*fixed, "--neighbours", 3, "--picture", tmp_path / "points.png", "--colour", "split")
    found = pq.read_table(out).to_pydict()
    features = np.array(found["feature"])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T - 2 * np.eye(60)
    assert np.array(found["similarity"]) == pytest.approx(-np.sort(-similarity, 1)[:, :3], abs=1e-5)
    assert all(name not in near for name, near in zip(found["id"], found["neighbour"], strict=True))
    table = lines_of(tmp_path / "features.neighbours.csv")
    assert [line["class"] for line in table] == ["left", "right"]
    assert all(0 <= float(line["precision_at_3"]) <= 1 for line in table)
    assert (tmp_path / "points.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main([str(part) for part in [*fixed, "--picture", tmp_path / "x.png", "--colour", "mood"]]) == 2
    assert "the store knows label, site" in capsys.readouterr().err
