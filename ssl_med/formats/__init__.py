"""Weights out: an export in the form that another library loads itself, with features equal to ours.

One file per client. Each has ``write(part, facts, folder) -> Written``; a model that the client's class cannot compute
is refused with the reason, never approximated.
"""

from ssl_med.formats.base import CLIENTS, Written, convert

__all__ = ["CLIENTS", "Written", "convert"]
