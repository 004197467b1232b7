"""``train.log``: what a run said and when, beside what the person saw."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_med.reporting.redact import hide_paths

LOG = logging.getLogger("ssl_med")
"""Where the library speaks. A record with ``quiet`` goes to the file only."""

_SOURCES = ("ssl_med", "pytorch_lightning", "lightning_fabric")


class _Console(logging.Handler):
    """To whatever ``sys.stdout`` is at the moment; warnings to ``sys.stderr``."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "quiet", False):
            print(record.getMessage(), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout, flush=True)


class _File(logging.FileHandler):
    """One line per message, without local paths; a full disk costs one warning, not the run."""

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # opening the file, which logging leaves out of its own net
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        return hide_paths(super().format(record).replace("\n", " "))

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            print(f"warning: train.log cannot be written ({sys.exception()}); the run goes on", file=sys.stderr)


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Send what the library says to the terminal and to ``folder/train.log``, the reason of a failure included."""
    file = _File(folder / "train.log", encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    console, level = _Console(), LOG.level
    LOG.setLevel(logging.INFO)
    LOG.addHandler(console)
    for name in _SOURCES:
        logging.getLogger(name).addHandler(file)
    try:
        yield
    except KeyboardInterrupt:
        LOG.info("stopped by the user", extra={"quiet": True})
        raise
    except BaseException as error:
        LOG.error("%s: %s", type(error).__name__, error, extra={"quiet": True})
        raise
    finally:
        for name in _SOURCES:
            logging.getLogger(name).removeHandler(file)
        LOG.removeHandler(console)
        LOG.setLevel(level)
        file.close()
