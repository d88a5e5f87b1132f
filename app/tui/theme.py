"""Ember's own colours; Textual brings the other themes."""

from textual.theme import Theme

EMBER = Theme(
    name="ember",
    dark=True,
    primary="#e8834a",
    secondary="#c9a27a",
    accent="#f2a65a",
    foreground="#e6ddd4",
    background="#171311",
    surface="#1f1a17",
    panel="#2a221d",
    success="#8fbf7f",
    warning="#e5c07b",
    error="#e06c5a",
)
EMBER_LIGHT = Theme(
    name="ember-light",
    dark=False,
    primary="#a8471a",
    secondary="#7a5a3a",
    accent="#b3541e",
    foreground="#2b2420",
    background="#fbf7f2",
    surface="#f3ece4",
    panel="#e9dfd4",
    success="#3f7d2f",
    warning="#8a6100",
    error="#b3261e",
)
