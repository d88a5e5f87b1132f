"""The one base class of every error a user may see, and the cache's own.

A message says what was got, what was expected, and what to do. Errors are
caught once, at the edge (command line or TUI), and shown as one line.
"""


class EmberError(Exception):
    """Base of all errors that ember raises on purpose."""


class CacheError(EmberError):
    """A refused cache operation; the cache is as it was before the call."""
