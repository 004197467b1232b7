"""Detection: anchors, their boxes, windows, the task, and boxes on their way to a table of the source."""

import csv
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from stores import save_nifti

from finetune import Detect
from finetune.anchors import anchors_of, assign
from finetune.box_geometry import centres, iou
from finetune.box_windows import has_the_say, windows_over
from finetune.focal import sigmoid_focal
from finetune.pyramid import FeaturePyramid, level_strides
from ssl_med.backbones import UNetEncoder
from ssl_med.data.boxes import stored_boxes
from ssl_med.data.cohort import load_template, subject
from ssl_med.data.index import find_images
from ssl_med.data.lesions import write_lesions
from ssl_med.data.module import StoreData
from ssl_med.data.prepare import build_store
from ssl_med.data.readers import read
from ssl_med.data.record import Record
from ssl_med.errors import UserError
from ssl_med.verbs.found_boxes import write_boxes
from ssl_med.verbs.predict import _predict_one

COLUMNS = {"boxes_mm": "tables/boxes.csv"}


def detect(axes: int = 2, classes: int = 1) -> Detect:
    torch.manual_seed(0)
    backbone = UNetEncoder(axes, 1, (8, 16, 16), blocks=1)
    return Detect(backbone, classes, [16] * axes, width=16, depth=1, finest=2, levels=2)


def boxes_in(space: tuple[int, ...], count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (count, len(space))) * space
    return torch.tensor(np.concatenate([low, low + rng.uniform(5, 14, low.shape)], 1), dtype=torch.float32)


def test_anchors_lie_around_the_middles_of_cells():
    anchors = anchors_of([(2, 3), (1, 2)], [(4, 4), (8, 8)], 2.0, torch.device("cpu"))
    assert anchors[0].tolist() == [-2, -2, 6, 6]
    assert anchors[5].tolist() == [2, 6, 10, 14]
    assert anchors[7].tolist() == [-4, 4, 12, 20]


def plain_assignment(boxes: np.ndarray, anchors: np.ndarray, sizes: list[int], count: int) -> list[int]:
    """ATSS for one image in plain loops."""
    axes, answers = boxes.shape[1] // 2, [(-1.0, -1)] * len(anchors)
    shared = iou(torch.tensor(boxes), torch.tensor(anchors)).numpy()
    middles = (anchors[:, :axes] + anchors[:, axes:]) / 2
    for number, box in enumerate(boxes):
        off, chosen, start = np.linalg.norm(middles - (box[:axes] + box[axes:]) / 2, axis=1), [], 0
        for size in sizes:
            chosen += (start + np.argsort(off[start : start + size], kind="stable")[:count]).tolist()
            start += size
        values = shared[number, chosen]
        inside = ((middles[chosen] > box[:axes] + 0.01) & (middles[chosen] < box[axes:] - 0.01)).all(1)
        taken = inside & (values >= values.mean() + values.std())
        if not taken.any():
            taken[values.argmax()] = True
        for place in np.array(chosen)[taken]:
            answers[place] = max(answers[place], (shared[number, place], number), key=lambda answer: answer[0])
    return [number for _, number in answers]


@pytest.mark.parametrize("space", [(32, 48), (24, 32, 32)], ids=str)
@pytest.mark.parametrize("count", [4, 9])
def test_anchors_are_assigned_as_in_plain_loops(space, count):
    grids = [tuple(size // step for size in space) for step in (2, 4)]
    anchors = anchors_of(grids, [(2,) * len(space), (4,) * len(space)], 4.0, torch.device("cpu"))
    sizes = [int(np.prod(grid)) for grid in grids]
    boxes = torch.stack([boxes_in(space, 3, seed) for seed in range(4)])
    ours = assign(boxes, torch.ones(4, 3, dtype=torch.bool), anchors, sizes, count)
    for found, row in zip(ours.tolist(), boxes, strict=True):
        plain = plain_assignment(row.numpy(), anchors.numpy(), sizes, count)
        assert len(set(plain)) > 2
        assert found == plain


def test_a_box_smaller_than_a_cell_gets_an_anchor_and_a_line_without_label_none():
    anchors = anchors_of([(4, 4)], [(8, 8)], 4.0, torch.device("cpu"))
    boxes = torch.tensor([[[0.5, 0.5, 2, 2], [0, 0, 0, 0]]])
    box = assign(boxes, torch.tensor([[True, False]]), anchors, [16])
    assert (box == 0).sum() == 1
    assert not (box == 1).any()
    assert (assign(boxes[:, :0], torch.zeros(1, 0, dtype=torch.bool), anchors, [16]) == -1).all()


def test_the_focal_loss_is_that_of_torchvision():
    from torchvision.ops import sigmoid_focal_loss

    logits, truth = torch.randn(5, 4), torch.randint(0, 2, (5, 4)).float()
    assert torch.allclose(sigmoid_focal(logits, truth), sigmoid_focal_loss(logits, truth), atol=1e-6)


@pytest.mark.parametrize("finest", [2, 4, 8])
def test_a_pyramid_on_one_stride_and_on_many(finest, tiny_vit):
    assert level_strides([(4, 16, 16)] * 2, 8, 3) == [(2, 8, 8), (4, 16, 16), (8, 32, 32)]
    image = torch.randn(1, 1, 24, 32)
    for backbone in (tiny_vit(2), UNetEncoder(2, 1, (4, 8, 8, 16), blocks=1)):
        pyramid = FeaturePyramid(backbone, 8, finest, 3)
        assert pyramid.strides == [(finest,) * 2, (2 * finest,) * 2, (4 * finest,) * 2]
        shapes = [tuple(level.shape) for level in pyramid(backbone(image))]
        assert shapes == [(1, 8, -(-24 // step), -(-32 // step)) for step, _ in pyramid.strides]
    with pytest.raises(UserError, match="pyramid: width 4"):
        FeaturePyramid(tiny_vit(2), 4, 4, 3)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_windows_cover_the_image_and_someone_has_the_say_everywhere(overlap):
    space, window = (37, 50), (16, 24)
    windows = windows_over(space, window, overlap)
    points = torch.cartesian_prod(torch.arange(37.0), torch.arange(50.0)) + 0.5
    boxes = torch.cat([points - 0.25, points + 0.25], 1)
    said, half = torch.zeros(len(points), dtype=torch.int64), torch.tensor(window) * overlap / 4
    for corner, lengths in windows:
        low, high = torch.tensor(corner), torch.tensor(corner) + torch.tensor(lengths)
        inside = ((points >= low) & (points < high)).all(1)
        counts = inside & has_the_say(boxes, (corner, lengths), space, overlap)
        said += counts
        rim = ((points - low < half) & (low > 0)) | ((high - points <= half) & (high < torch.tensor(space)))
        assert torch.equal(counts, inside & ~rim.any(1))
    assert (said >= 1).all()
    assert windows_over((10, 24), window, overlap) == [((0, 0), (10, 24))]


def answering(task: Detect, places: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the network by one that reads boxes off the image: voxel i + 1 is the middle of box i."""

    def dense(image: torch.Tensor, spacing: torch.Tensor | None = None):
        seen = [(int(image[(0, 0, *at)]) - 1, at) for at in image[0, 0].nonzero().tolist()]
        rows = [[at[a] + 0.5 + sign * places[i, a] / 2 for sign in (-1, 1) for a in range(len(at))] for i, at in seen]
        anchors = torch.tensor(rows).reshape(len(rows), 2 * (image.ndim - 2))
        return torch.full((1, len(rows), 1), 2.0), torch.zeros(1, *anchors.shape), anchors, [len(rows)]

    monkeypatch.setattr(task, "dense", dense)


@pytest.mark.parametrize("space", [(16, 16), (40, 53), (20, 33, 16)], ids=str)
def test_every_box_is_found_once_across_windows(space, monkeypatch):
    task, rng = detect(len(space)), np.random.default_rng(0)
    sides = torch.full((6, len(space)), 3.0)
    answering(task, sides, monkeypatch)
    image = torch.zeros(1, 1, *space)
    middles = [[0] * len(space), [size - 1 for size in space]]
    while len(middles) < 6:
        new = rng.integers(0, space).tolist()
        if all(max(abs(a - b) for a, b in zip(new, old, strict=True)) > 4 for old in middles):
            middles.append(new)
    for number, middle in enumerate(middles):
        image[(0, 0, *middle)] = number + 1
    found = task.predict({"image": image})[0]
    told = found[found[:, -1] >= 0]
    assert len(told) == 6
    truth = torch.tensor(middles) + 0.5
    nearest = torch.cdist(centres(told[:, :-2]), truth).min(0)
    assert nearest.values.max() < 1.01  # those at the rim are clipped
    assert found[6:, -1].unique().tolist() == [-1]
    assert found.shape == (100, 2 * len(space) + 2)
    valid = torch.ones(1, 1, *space, dtype=torch.bool)
    valid[..., space[-1] // 2 :] = False
    some = task.predict({"image": image, "valid": valid})[0]
    kept = (some[:, -1] >= 0).sum()
    assert kept == (truth[:, -1] < space[-1] // 2).sum()


def test_unknown_places_are_no_background(make_batch):
    task, batch = detect(classes=2), make_batch((16, 16))
    plain = task(batch, 0.0)["focal"]
    batch["valid"] = torch.ones(4, 1, 16, 16, dtype=torch.bool)
    assert torch.equal(task(batch, 0.0)["focal"], plain)
    batch["valid"][..., 12:, :] = False
    part = task(batch, 0.0)["focal"]
    assert part < plain
    del batch["valid"]
    batch["mask"][..., 12:, :] = -1
    assert torch.equal(task(batch, 0.0)["focal"], part)
    batch["boxes"], batch["box_labels"] = batch["boxes"][:, :0], batch["box_labels"][:, :0]
    losses = task(batch, 0.0)
    assert losses["giou"] == 0
    assert losses["focal"] > 0
    losses["loss"].backward()


@pytest.mark.parametrize("axes", [2, 3])
def test_it_learns_to_find_boxes(axes):
    torch.manual_seed(0)
    space, rng = (16,) * axes, np.random.default_rng(0)
    task = detect(axes)
    low = torch.tensor(rng.integers(0, 10, (32, axes)))
    boxes = torch.cat([low, low + torch.tensor(rng.integers(4, 7, (32, axes)))], 1).float()
    image = 0.3 * torch.randn(32, 1, *space)
    for row, box in zip(image, boxes.long().tolist(), strict=True):
        row[(0, *(slice(a, b) for a, b in zip(box[:axes], box[axes:], strict=True)))] += 2
    batches = {"image": image, "boxes": boxes[:, None], "box_labels": torch.zeros(32, 1, dtype=torch.int64)}
    optimiser = torch.optim.AdamW(task.parameters(), 5e-3)
    for step in range(40):
        some = slice(8 * (step % 3), 8 * (step % 3) + 8)
        task({name: value[some] for name, value in batches.items()}, 0.0)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    test = {name: value[24:] for name, value in batches.items()}
    task.eval()
    scores = task.summarise(task.score(task.predict(test), test))
    assert scores["map_10"] > 0.8
    assert scores["sensitivity_at_1"] > 0.8
    pictures = task.pictures(test)
    assert pictures["reference"].amax() == 1
    assert pictures["prediction"].amax() > 0.3


class Reader:
    """Finds the bright box of what it is shown."""

    def __init__(self):
        self.backbone = self

    def multiple(self):
        return (4, 4, 4)

    def predict(self, batch):
        image = batch["image"][0, 0]
        places = (image > (image.amax() + image.amin()) / 2).nonzero()
        line = [*places.amin(0).tolist(), *(places.amax(0) + 1).tolist(), 0.75, 0]
        return torch.tensor([[line, [0.0] * 6 + [0, -1]]], dtype=torch.float32)


GRIDS = {
    "own": {},
    "orientation": {"prepared": {"spacing": [], "orientation": "LPI"}},
    "spacing": {"prepared": {"spacing": [1.0, 1.0, 1.0], "orientation": "SAL", "order": 1}},
    "crops": {"fixed_spacing_mm": [1.0, 1.0, 1.0]},
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("codes", ["RAS", "LSP"])
def test_boxes_come_back_to_the_source_and_can_be_read_again(tmp_path, name, codes):
    array = np.zeros((20, 22, 24), np.int16)
    array[4:12, 6:12, 5:9] = 100
    affine = np.array([[1.0, 0, 0, -10], [0, 1.5, 0, 5], [0, 0, 2, 30], [0, 0, 0, 1]])
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes))
    file = nibabel.Nifti1Image(array, affine).as_reoriented(turn)
    stored = np.asanyarray(file.dataobj)
    path = save_nifti(tmp_path / "in" / "scan.nii.gz", stored, file.affine)
    image = replace(read(Record("scan.nii.gz", "nifti", (path,))), modality="MR")
    card = {"input": {"intensity": "unit", "crop": [8, 8, 8], **GRIDS[name]}}
    found = _predict_one(Reader(), card, image)
    exact = name in ("own", "orientation")
    places = np.argwhere(stored > 50)
    assert np.allclose(found[0, :6], [*places.min(0), *(places.max(0) + 1)], atol=1e-4 if exact else 1.01)
    world = [4 - 10 - 0.5, (6 - 0.5) * 1.5 + 5, (5 - 0.5) * 2 + 30, 12 - 10 - 0.5, 11.5 * 1.5 + 5, 8.5 * 2 + 30]
    assert np.allclose(found[0, 6:12], world, atol=1e-4 if exact else 1.01)
    assert found[0, 12:].tolist() == [0.75, 0]
    assert len(found) == 1
    write_boxes([("scan.nii.gz", found), ("other.nii.gz", found[:0])], ["nodule"], tmp_path / "in" / "boxes.csv")
    rows = list(csv.DictReader((tmp_path / "in" / "boxes.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["nodule", ""]
    assert [row["score"] for row in rows] == ["0.7500", ""]
    (tmp_path / "in" / "table.csv").write_text("image\nscan.nii.gz\n")
    again = next(find_images(tmp_path / "in", manifest=tmp_path / "in" / "table.csv", columns={"boxes": "boxes.csv"}))
    assert np.allclose(again.boxes, [*found[0, :6], 0], atol=1e-3)


def test_the_cohort_has_lesions_where_its_table_says(tmp_path):
    for name in ("first", "again"):
        write_lesions(tmp_path / name, 2, seed=3)
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("first", "again")]
    assert files[0] == files[1]
    for number, record in enumerate(find_images(tmp_path / "first", columns=COLUMNS)):
        image = read(record)
        before = subject(load_template(), 3, number, 4.0).image.T
        changed = np.argwhere(image.array[0] > before * 1.1 + 1) + 0.5
        boxes = np.array(stored_boxes(record, image, image)).reshape(-1, 7)[:, :6]
        inside = [((changed > box[:3] - 0.6) & (changed < box[3:] + 0.6)).all(1) for box in boxes]
        assert 1 <= len(boxes) <= 3
        assert (np.sum(inside, 0) == 1).all()
        for box, mine in zip(boxes, inside, strict=True):
            shown = changed[mine]
            assert np.abs(shown.min(0) - 0.5 - box[:3]).max() < 1.5
            assert np.abs(shown.max(0) + 0.5 - box[3:]).max() < 1.5
    with pytest.raises(UserError, match="lesions: expected 1 subject"):
        write_lesions(tmp_path, 0)


def test_crops_show_the_middle_of_a_box_where_foreground_asks_for_it(tmp_path):
    array = np.random.default_rng(0).normal(100, 1, (40, 40, 40)).astype(np.float32)
    save_nifti(tmp_path / "in" / "scan.nii.gz", array, np.eye(4))
    (tmp_path / "in" / "table.csv").write_text('image,split,b\nscan.nii.gz,train,"[[30, 31, 2, 4, 4, 4, 0]]"\n')
    build_store(list(find_images(tmp_path / "in", columns={"boxes": "b"})), tmp_path / "store", [], say=lambda _: None)
    for foreground, least, most in ((1.0, 12, 12), (0.0, 0, 6)):
        crops = StoreData(str(tmp_path / "store"), 16, 2, targets="boxes", foreground=foreground).crops()
        shown = sum(bool((crops[position]["box_labels"] >= 0).any()) for position in range(12))
        assert least <= shown <= most
