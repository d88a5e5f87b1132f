"""Ember's own colours; Textual brings the other themes. Of all, what makes them readable."""

from collections.abc import Mapping

from textual.color import Color
from textual.theme import Theme

from app.tui.text.colours import MUTED_CONTRAST, TEXT_CONTRAST, standing_out

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
# What text is written in.
_INKS = ("foreground", "primary", "secondary", "accent", "warning", "error", "success")


def readable_variables(variables: Mapping[str, str], *, is_dark: bool) -> dict[str, str]:
    """A theme's variables with text that stands out from whatever ember puts behind it.

    Adds `muted`, for what matters less, and `chosen`, for what is behind a list's chosen line.
    Colours that the terminal chooses (ANSI) cannot be measured: there, all text is as it sets it.
    """
    if variables["background"].startswith("ansi"):
        behind_chosen = "ansi_blue" if is_dark else "ansi_bright_cyan"
        # A list's chosen line, whether the keys go there or to the field above it.
        cursors = ("block-cursor-background", "block-cursor-blurred-background")
        return {**variables, **_BY_TERMINAL, **dict.fromkeys(cursors, behind_chosen)}
    background, surface, primary = (
        Color.parse(variables[each]) for each in ("background", "surface", "primary")
    )
    panel = background + Color.parse(variables["panel"])
    chosen, hovered = (surface.blend(primary, share, alpha=1.0) for share in (0.22, 0.11))
    behind = [background, surface, panel, chosen, hovered]
    inks = {
        each: standing_out(Color.parse(variables[each]), behind, TEXT_CONTRAST) for each in _INKS
    }
    foreground = inks["foreground"]
    quiet = background.blend(foreground, 0.6, alpha=1.0)
    marked = inks["primary"]
    on_marked = standing_out(background, [marked], TEXT_CONTRAST).hex
    return {
        **variables,
        **{name: ink.hex for name, ink in inks.items()},
        "muted": standing_out(quiet, behind, MUTED_CONTRAST).hex,
        "chosen": chosen.hex,
        "panel": panel.hex,
        "text-success": inks["success"].hex,
        "text-warning": inks["warning"].hex,
        "text-error": inks["error"].hex,
        "block-cursor-foreground": foreground.hex,
        "block-cursor-background": chosen.hex,
        "block-cursor-blurred-foreground": foreground.hex,
        "block-cursor-blurred-background": chosen.hex,
        "block-hover-background": hovered.hex,
        "input-cursor-foreground": background.hex,
        "input-cursor-background": foreground.hex,
        "input-selection-foreground": on_marked,
        "input-selection-background": marked.hex,
        "screen-selection-foreground": on_marked,
        "screen-selection-background": marked.hex,
    }


_BY_TERMINAL = {
    "muted": "ansi_default",
    "chosen": "ansi_default",
    # Textual turns the prompt's selection round: what it is written in becomes what is behind it.
    "input-selection-foreground": "ansi_default",
    "block-cursor-foreground": "ansi_default",
    "block-cursor-text-style": "bold",
    "block-cursor-blurred-text-style": "bold",
}
