"""Compiled functions: kept on disk where that is possible, and working where it is not."""

import logging

import pytest
from numba.core import caching

from ssl_med import compiled as module
from ssl_med.compiled import compiled


def double(number):
    return 2 * number


def test_without_a_place_for_the_cache_functions_work_and_one_warning_is_given(monkeypatch, caplog):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    module._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [compiled(nogil=True)(double)(n) for n in (1, 2)] == [2, 4]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "NUMBA_CACHE_DIR" in caplog.text
    assert str(__file__) not in caplog.text


def test_other_errors_of_the_compiler_are_told(monkeypatch):
    def broken(**_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(module, "njit", broken)
    with pytest.raises(RuntimeError, match="no compiler"):
        compiled()(double)
