"""The one exception that users see: a single clear line that names the culprit and the way out."""

from __future__ import annotations


class SpeqError(Exception):
    """An error caused by input or environment; ``str(error)`` is one line, which the command line prints."""
