"""What the screen costs while text streams: `python -m tests.app.tui.benchmark`.

Runs the real chat on a pseudo-terminal with a scripted model that says 200
tokens a second, presses keys, and times each until its letter is drawn.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

from app.chat.state import Draft
from app.job import Job
from app.service.contract import AnswerEvent, Ask
from app.tui.terminal.garbage import collected_at_rest
from tests.app.service.scripted_service import ScriptedService, layer_stats
from tests.app.tui.timed_terminal import TimedTerminal, quantile

_WARM_UP = 2.0
_PAGE = """\
## Cold blocks

Attention reads **every cached key** for each new token, so the cost grows with the context. \
The list below says what `ember` does about it:

1. keep the sinks and the hot window
2. encode what is older into blocks of *64 tokens*
3. let go of the oldest block when the budget is full

```python
def migrate(cache, block):
    for layer in cache.layers:
        layer.cold.append(encode(layer.hot[:block]))
        layer.hot = layer.hot[block:]
    return cache
```

| tier | bits | tokens |
|---|---|---|
| hot | 16 | 256 |
| cold | 4.5 | 1728 |

"""


class PacedService(ScriptedService):
    """Answers every question with endless pages at a steady speed."""

    def __init__(self, tokens_per_second: float) -> None:
        super().__init__()
        self._pause = 1 / tokens_per_second
        self._ended = threading.Event()

    def answer(self, ask: Ask) -> Job[AnswerEvent]:
        job = super().answer(ask)
        threading.Thread(target=self._speak, daemon=True).start()
        return job

    def _speak(self) -> None:
        self.read(20, 20)
        pieces = [_PAGE[at : at + 4] for at in range(0, len(_PAGE), 4)]
        began, said = time.monotonic(), 0
        while not self._ended.is_set():
            self.say(pieces[said % len(pieces)])
            said += 1
            old = max(said // 64 - 4, 0) * 64
            cold = min(old, 1024)
            hot = said - old
            self.stats = layer_stats(sink=4, hot=hot, cold=cold, evicted=old - cold, layers=30)
            time.sleep(max(began + said * self._pause - time.monotonic(), 0))

    def close(self) -> None:
        self._ended.set()


def child(seconds: float, speed: float, report: Path) -> None:
    """Run the chat for a while; write what its thread took."""
    from app.tui.app import ChatApp

    service = PacedService(speed)
    app = ChatApp(service, model="scripted")
    taken: dict[str, float] = {}

    def begin() -> None:
        taken["wall"], taken["cpu"] = time.perf_counter(), time.thread_time()

    def end() -> None:
        wall, cpu = time.perf_counter() - taken["wall"], time.thread_time() - taken["cpu"]
        message = app.chat.chat.messages[-1]
        said = len(message.text) / 4
        report.write_text(json.dumps({"share": cpu / wall, "tokens": said}))
        app.exit()

    def start() -> None:
        app.chat.ask(Draft(text="go on"))
        app.set_timer(_WARM_UP, begin)
        app.set_timer(_WARM_UP + seconds, end)

    app.call_later(start)
    with collected_at_rest():
        app.run()
    service.close()


def measure(seconds: float, speed: float) -> dict[str, float]:
    """Run the child on a pseudo-terminal and press keys; returns the figures."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        arguments = ["--child", str(report), "--seconds", str(seconds), "--speed", str(speed)]
        with TimedTerminal("tests.app.tui.benchmark", arguments) as terminal:
            terminal.drain(time.monotonic() + 60, until=b"Cold blocks")
            terminal.drain(time.monotonic() + _WARM_UP)
            presses = terminal.press_keys(time.monotonic() + seconds - 1)
        found: dict[str, float] = json.loads(report.read_text())
    return found | {
        "keys": len(presses),
        "p50_ms": 1000 * quantile(presses, 0.5),
        "p99_ms": 1000 * quantile(presses, 0.99),
        "max_ms": 1000 * quantile(presses, 1.0),
    }


def main() -> None:
    """Measure and print, or be the program that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--speed", type=float, default=200, help="tokens a second")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.seconds, args.speed, args.child)
        return
    found = measure(args.seconds, args.speed)
    print(
        f"{args.speed:.0f} tok/s: UI thread {found['share']:.0%} of a core; "
        f"{found['keys']:.0f} keys, p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms, "
        f"max {found['max_ms']:.1f} ms; {found['tokens']:.0f} tokens in the answer"
    )


if __name__ == "__main__":
    main()
