"""The chat in a real terminal: line by line (bars, Ctrl-C, Ctrl-D), and how it opens."""

from pathlib import Path

from tests.app.terminal import END, INTERRUPT, QUIT, READS_LINE, Terminal


def test_chat_answers_stops_and_ends(tiny_path: Path, tmp_path: Path) -> None:
    folders = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    window = ["--ctx", "1000000", "--beyond-context", "--max-tokens", "1000000", "--temp", "0"]
    terminal = Terminal(
        "chat", "--plain", "-m", str(tiny_path), *window, "--allow-loops", environment=folders
    )
    terminal.wait_for(READS_LINE)
    terminal.type(b"ba ce di\n")
    terminal.wait_for("reading")
    terminal.wait_for_more(2000)
    terminal.type(INTERRUPT)
    terminal.wait_for(" tok/s · answer")
    terminal.type(b"/stats\n")
    terminal.wait_for(" evicted; ")
    terminal.type_until(INTERRUPT, "Ctrl-D ends the chat")
    terminal.type(END)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown
    assert "reading" in terminal.shown


def test_a_bare_model_opens_the_full_screen(tiny_path: Path, tmp_path: Path) -> None:
    folders = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    terminal = Terminal(str(tiny_path), environment=folders)
    terminal.wait_for("KV cache")
    terminal.wait_for("/128")
    terminal.type(QUIT)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown
