"""What stands left of a line: who speaks, and where the line's tokens are."""

from rich.segment import Segment

from app.chat.tier_counts import Tier, tier_at
from app.tui.text.colours import Palette
from app.tui.text.roll import Roll
from kvcache.stats import CacheStats

WIDTH = 3
_MARKS = {Tier.COLD: "▒", Tier.EVICTED: "×"}


def margin(
    roll: Roll, index: int, local: int, stats: CacheStats | None, palette: Palette
) -> Segment:
    """The margin of line `local` of an entry."""
    entry = roll.entries[index]
    mark = _tier_mark(roll, index, local, stats)
    glyph = _glyph(is_answer=entry.is_answer) if local == 0 else " "
    style = palette.muted if mark != " " or not entry.is_answer else palette.accent
    return Segment(f"{mark}{glyph} ", style)


def selected_margin(roll: Roll, index: int, local: int, palette: Palette) -> Segment:
    """The margin of a line of the selected message."""
    glyph = _glyph(is_answer=roll.entries[index].is_answer) if local == 0 else " "
    return Segment(f"▌{glyph} ", palette.accent)


def _tier_mark(roll: Roll, index: int, local: int, stats: CacheStats | None) -> str:
    """Where the tokens of a line are, its share of the message's taken by its place."""
    entry = roll.entries[index]
    end = entry.message.end
    if end == 0 and local < entry.body:
        return _MARKS[Tier.EVICTED]  # left out: the model does not read it
    if stats is None or end is None or local >= entry.body:
        return " "
    start = roll.tokens_before(index)
    position = start + (end - start) * (local + 0.5) / entry.body
    return _MARKS.get(tier_at(position, stats), " ")


def _glyph(*, is_answer: bool) -> str:
    return "◆" if is_answer else "❯"
