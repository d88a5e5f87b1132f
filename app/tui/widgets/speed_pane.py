"""How fast the model reads and answers."""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Digits

from app import units
from app.chat.speed_meter import BIN_SECONDS, BINS, Speed
from app.events import Completion, Drafts, PrefillProgress
from app.service.contract import ModelInfo
from app.tui.text.colours import MUTED
from app.tui.text.sparkline import sparkline
from app.tui.widgets.pane import Pane

_HEIGHT = 2


class SpeedPane(Vertical):
    """Tokens per second now, on average and over the last minute; first token and prefill."""

    def __init__(self) -> None:
        super().__init__()
        self.border_title = "Speed"
        self._digits, self._pane = Digits("0.0"), Pane("")

    def compose(self) -> ComposeResult:
        yield self._digits
        yield self._pane

    def show(
        self,
        model: ModelInfo | None,
        speed: Speed,
        prefill: PrefillProgress | None,
        last: Completion | None,
        drafts: Drafts,
    ) -> None:
        """Update from the meter, the running prefill, the last finished answer and drafts."""
        title = f"Speed · {model.backend}" if model else "Speed"
        if self.border_title != title:
            self.border_title = title
        shown = units.rate(speed.now or (last.decode_tps if last else 0.0))
        if self._digits.value != shown:
            self._digits.update(shown)
        width = max(self._pane.size.width, 10)
        rate = units.rate
        lines = sparkline(speed.bins, min(width, BINS // 2), _HEIGHT)
        span = f"{min(len(speed.bins), 2 * width) * BIN_SECONDS:.0f} s"
        self._pane.draw(
            Content("\n").join(
                [
                    Content.styled(
                        f"avg {rate(speed.average)}  peak {rate(speed.peak)}  p5 {rate(speed.p5)}",
                        MUTED,
                    ),
                    *(Content.styled(line, "$accent") for line in lines),
                    Content.styled(f"tok/s from 0, last {span}", MUTED),
                    _first_token(prefill, last),
                    *_drafted(drafts),
                    *_notes(model),
                ]
            )
        )


def _notes(model: ModelInfo | None) -> list[Content]:
    """That there is something to know about how the model runs."""
    if model is None or not model.notes:
        return []
    return [Content.styled(f"! {len(model.notes)} to know about this: F3", "$warning")]


def _drafted(drafts: Drafts) -> list[Content]:
    """How many drafted tokens were accepted, and what that gives, where there were any."""
    if not drafts.tried:
        return []
    per_step = f"{drafts.tokens_per_step:.1f} tok/step"
    return [Content(f"drafts {drafts.share:.0%} taken  {per_step}")]


def _first_token(prefill: PrefillProgress | None, last: Completion | None) -> Content:
    if prefill is not None and prefill.done < prefill.total:
        return Content(f"reading {prefill.done}/{prefill.total}")
    if last is None:
        return Content("")
    ttft, read = units.seconds(last.ttft_s), units.rate(last.prefill_tps)
    return Content(f"TTFT {ttft}  prefill {read} t/s")
