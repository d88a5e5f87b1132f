"""What whoever started a server sees of it."""

import re
import signal
from pathlib import Path

from app.serve.live_view import rows
from app.serve.server_figures import Figures
from tests.app.serve.conftest import Served
from tests.app.serve.test_answers import complete, prompt
from tests.app.terminal import INTERRUPT, Terminal


def test_figures_are_said_in_words() -> None:
    now = Figures(
        places=4,
        running=3,
        waiting=2,
        tokens={"sink": 4, "hot": 1256, "cold": 64, "evicted": 0},
        budget_bytes=8 << 20,
        running_bytes=3 << 20,
        kept_bytes=1 << 20,
        kept=5,
        requests=20,
        hits=7,
        cached_tokens=3100,
        tokens_per_second=12.34,
    )
    assert dict(rows(now)) == {
        "running": "3 of 4, 2 waiting",
        "speed": "12.3 tokens/s",
        "tokens": "4 sink, 1,256 hot, 64 cold, 0 evicted",
        "memory": "3.0 + 1.0 kept of 8.0 MiB",
        "kept": "5 prompts; found for 7 of 20 requests, 3,100 tokens",
    }


def test_a_terminal_shows_them_until_ctrl_c(served_path: Path) -> None:
    terminal = Terminal("serve", str(served_path), "--port", "0", "--ctx", "512")
    terminal.wait_for("/v1")
    found = re.search(r"http://127.0.0.1:(\d+)/v1", terminal.shown)
    assert found is not None
    complete(Served(port=int(found[1]), generator=None), prompt(9), 3)
    terminal.wait_for("9 tokens read, 0 of them kept before, 3 answered")
    terminal.wait_for("0 of 8, 0 waiting")
    terminal.type(INTERRUPT)
    assert terminal.close() == 128 + signal.SIGINT
    assert "Traceback" not in terminal.shown
