"""``ssl-med report``: one HTML page for a run or for a folder of runs."""

from ssl_med.reporting import report

__all__ = ["report"]
