"""``embed --umap``: the layout of a package, kept repeatable, and a clear word where it is missing."""

import builtins

import numpy as np
import pytest

from ssl_med.errors import UserError
from ssl_med.verbs.embed import lay_out


def blobs() -> np.ndarray:
    """Thirty points around each of two distant places in 16 dimensions."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(centre, 0.1, (30, 16)) for centre in (0.0, 5.0)]).astype(np.float32)


def test_neighbours_stay_neighbours_and_the_layout_repeats() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    first, second = lay_out(blobs()), lay_out(blobs())
    assert first.shape == (60, 2)
    np.testing.assert_array_equal(first, second)
    distance = np.linalg.norm(first[:, None] - first[None], axis=-1) + np.diag(np.full(60, np.inf))
    assert ((distance.argmin(1) < 30) == (np.arange(60) < 30)).all()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name == "umap":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="umap-learn"):
        lay_out(blobs())
