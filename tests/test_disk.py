"""The room that a store may need, before anything is read, beside what it took in the end."""

from pathlib import Path

import numpy as np
import pytest
from stores import build, save_nifti, volume, volumes

from ssl_med.data.disk import disk_estimate
from ssl_med.data.index import find_images
from ssl_med.data.record import Record, Tiling
from ssl_med.data.settings import Settings


def taken(store: Path) -> int:
    return sum(path.stat().st_size for part in ("images", "masks") for path in (store / part).glob("*"))


def estimate(source: Path, **settings) -> int:
    return disk_estimate(list(find_images(source)), source, Settings(**settings))[0]


@pytest.mark.parametrize("spacing", [(), (0.5, 0.5, 0.5), (4.0, 0.0, 0.0)])
def test_another_spacing_needs_other_room(tmp_path, spacing):
    source = volumes(tmp_path / "in", 4, shape=(40, 40, 40))
    need = estimate(source, spacing=spacing)
    build(source, tmp_path / "store", settings=Settings(spacing=spacing))
    assert 0.5 < need / taken(tmp_path / "store") < 3
    one = estimate(source)
    assert need / one == pytest.approx({0: 1, 0.5: 2 * 3 * 4, 4.0: 0.5}[spacing[0] if spacing else 0])


def test_one_number_counts_for_all_axes_and_2d_spacings_change_no_volume(tmp_path):
    source = volumes(tmp_path / "in", 1)
    assert estimate(source, spacing=(0.5,)) == estimate(source, spacing=(0.5, 0.5, 0.5))
    assert estimate(source, spacing=(0.5, 0.5)) == estimate(source)


def test_voxels_in_a_second_file_and_masks_count_and_what_is_set_aside_does_not(tmp_path):
    np.zeros(1000, np.int16).tofile(tmp_path / "a.raw")
    text = "ObjectType = Image\nNDims = 3\nDimSize = 10 10 10\nElementType = MET_SHORT\nElementDataFile = a.raw\n"
    header = tmp_path / "a.mhd"
    header.write_text(text)
    record = Record("a", "metaimage", (header,))
    alone = disk_estimate([record], tmp_path)[0]
    assert alone == len(text) + 1000
    mask = save_nifti(tmp_path / "m.nii.gz", volume(0)[1])
    both = Record("a", "metaimage", (header,), mask=mask)
    assert disk_estimate([both], tmp_path)[0] == alone + mask.stat().st_size
    assert disk_estimate([record, Record("b", "metaimage", (header,), aside="scout")], tmp_path)[0] == alone


def test_films_and_tiles_grow(tmp_path):
    film, slide = tmp_path / "a.mp4", tmp_path / "b.svs"
    film.write_bytes(bytes(1000))
    slide.write_bytes(bytes(1000))
    assert disk_estimate([Record("a", "video", (film,))], tmp_path)[0] == 20_000
    tiles = [Record(f"b#{n}", "slides", (slide,), item=n, tiling=Tiling(size=100)) for n in range(7)]
    assert disk_estimate(tiles, tmp_path)[0] == 7 * 100 * 100 * 3 * 3 // 4
