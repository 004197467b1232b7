"""The command behind the pictures of docs/tasks, and that every page has its own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stores import pictures, store_of

from benchmarks.figures import ANSWERS, FIGURES, Figure, made_up, main, pictures_of

PAGES = Path(__file__).parents[1] / "docs" / "tasks"
WITHOUT = {"README"}
"""Pages that show no views of their own."""


def test_two_figures_are_drawn_and_drawn_alike_again(tmp_path) -> None:
    for folder in ("first", "again"):
        main(["--out", str(tmp_path / folder), "--tasks", "ijepa", "voco"])
    for name in ("ijepa.png", "voco.png"):
        first, again = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("first", "again"))
        assert np.array_equal(first, again)
        assert len(np.unique(first)) > 10
        assert (tmp_path / "first" / name).stat().st_size < 80_000


def test_a_store_gives_its_own_images(tmp_path) -> None:
    store = store_of(pictures(tmp_path / "in", 4), tmp_path / "store").folder
    main([str(store), "--out", str(tmp_path / "own"), "--tasks", "two_views"])
    main(["--out", str(tmp_path / "made"), "--tasks", "two_views"])
    own, made = (np.asarray(Image.open(tmp_path / folder / "two_views.png")) for folder in ("own", "made"))
    assert own.shape != made.shape or not np.array_equal(own, made)


def test_made_up_images_have_a_lesion_that_stands_out() -> None:
    batch = made_up(Figure((), (40, 48)), 0)
    image, lesion = batch["image"], batch["saliency"]
    assert (image.shape, lesion.shape) == ((2, 1, 40, 48), (2, 1, 40, 48))
    assert 0 <= image.min() < 0.02
    assert image[lesion > 0.7].mean() > image[lesion < 0.1].mean() + 0.2
    assert not torch.equal(image, made_up(Figure((), (40, 48)), 1)["image"])


@pytest.mark.parametrize("name", ["dino", "models_genesis", "one_backbone"])
def test_what_is_shown_is_what_the_network_is_shown(name) -> None:
    figure = FIGURES[name]
    batch, part = made_up(figure, 0), figure.parts[0]
    found = pictures_of(part.task(part.backbone(len(figure.space)), **part.settings), batch)
    titles = [title for title in found if title not in ANSWERS]
    if name == "dino":
        assert titles[-3:] == ["small crop 1", "small crop 2", "small crop 3"]
        assert found["small crop 1"].shape[-1] < found["global view 1"].shape[-1]
    elif name == "models_genesis":
        assert titles == ["target", "corrupted"]
    else:
        assert titles == ["volume, middle", "slice 1", "slice 2", "slice 3", "slice 4"]


def test_every_page_shows_a_figure_that_is_there_and_small() -> None:
    shown = {page.stem: re.findall(r"\]\((figures/\w+\.png)\)", page.read_text()) for page in PAGES.glob("*.md")}
    assert {page for page, figures in shown.items() if not figures} == WITHOUT
    linked = {figure for figures in shown.values() for figure in figures}
    assert linked == {f"figures/{name}.png" for name in FIGURES}
    assert all((PAGES / figure).stat().st_size < 80_000 for figure in linked)
