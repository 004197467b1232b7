"""Films and folders of numbered frames become arrays with time first, or say why not."""

from pathlib import Path

import av
import numpy as np
import pytest
from image_files import record, written
from PIL import Image as Pillow

from ssl_med.data.readers import Limits, read
from ssl_med.data.readers.frames import looks_like_frames
from ssl_med.data.record import Record, Unreadable


def moving_box(frames: int = 8, height: int = 48, width: int = 64) -> np.ndarray:
    film = np.full((frames, height, width, 3), 30, np.uint8)
    for time in range(frames):
        film[time, 8:24, 4 * time : 4 * time + 16] = 200, 120, 60
    return film


def saved(path: Path, film: np.ndarray, codec: str, layout: str) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *film.shape[1:3], layout
        for picture in film:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.ndim == 3 else "gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [("a.mp4", "mpeg4", "yuv420p"), ("a.mov", "png", "rgb24"), ("a.avi", "mjpeg", "yuvj420p")],
)
def test_films_keep_time_and_place(tmp_path, name, codec, layout):
    film = moving_box()
    image = read(record(saved(tmp_path / name, film, codec, layout)))
    assert image.array.shape == (3, 8, 48, 64)
    assert image.spacing == (1.0, 1.0, 1.0)
    difference = np.abs(image.array.astype(int) - np.moveaxis(film, -1, 0))
    assert difference.mean() < (1e-9 if codec == "png" else 5)


def test_a_lossless_grey_film_is_exact(tmp_path):
    film = moving_box()[..., 0]
    image = read(record(saved(tmp_path / "a.avi", film, "ffv1", "gray")))
    np.testing.assert_array_equal(image.array, film[None])


def test_broken_films_say_why(tmp_path):
    path = saved(tmp_path / "a.avi", moving_box(), "mjpeg", "yuvj420p")
    data = path.read_bytes()
    with pytest.raises(Unreadable, match=r"voxels, the limit is 20000"):
        read(record(path), Limits(voxels=20000))
    for share in (0.1, 0.5, 0.8):
        with pytest.raises(Unreadable, match=r"damaged|cut short|without frames"):
            read(record(written(tmp_path / "b.avi", data[: int(len(data) * share)])))
    with pytest.raises(Unreadable, match="film is damaged"):
        read(record(written(tmp_path / "b.mp4", b"<html>" * 100)))


def frame_folder(folder: Path, film: np.ndarray) -> tuple[Path, ...]:
    for time, picture in enumerate(film):
        Pillow.fromarray(picture).save(folder / f"frame{time + 1}.png")
    return tuple(sorted(folder.iterdir()))  # by letters: frame1, frame10, frame11, frame2 ...


def test_frames_are_read_in_natural_order(tmp_path):
    film = moving_box(frames=12)[..., 0]
    image = read(Record("a", "frames", frame_folder(tmp_path, film)))
    np.testing.assert_array_equal(image.array[0], film)
    assert image.spacing == (1.0, 1.0, 1.0)


def test_frames_of_other_sizes_are_refused(tmp_path):
    film = moving_box()
    files = frame_folder(tmp_path, film)
    with pytest.raises(Unreadable, match="voxels, the limit is 40000"):
        read(Record("a", "frames", files), Limits(voxels=40000))
    Pillow.fromarray(film[0][:, :-1]).save(files[3])
    with pytest.raises(Unreadable, match=r"frame 3 has shape \(3, 48, 63\)"):
        read(Record("a", "frames", files))


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["a1.png", "a2.png", "a10.png", "a3.png"], False),
        ([f"a{n}.png" for n in range(9, 12)], True),
        ([f"{n:04}.jpg" for n in range(5)], True),
        (["a1.png", "a2.png"], False),
        (["a1.png", "b2.png", "c3.png"], False),
        (["a1.png", "a2.jpg", "a3.png"], False),
        (["a1.dcm", "a2.dcm", "a3.dcm"], False),
        (["x/a1.png", "y/a2.png", "x/a3.png"], False),
        (["one.png", "two.png", "three.png"], False),
    ],
)
def test_what_looks_like_frames(names, answer):
    assert looks_like_frames([Path(name) for name in names]) is answer
