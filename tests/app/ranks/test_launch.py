"""What `mlx.launch` tells a process, and what is refused before processes meet."""

import json
from pathlib import Path

import pytest

from app.ranks.launch import Launch, launch
from kvcache import EmberError
from tests.app.conftest import Ember


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as for the ring of two machines, and this is the second of them."""
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps([["10.0.0.1:32323"], ["10.0.0.2:32324"]]))
    monkeypatch.setenv("MLX_RANK", "1")
    monkeypatch.setenv("MLX_HOSTFILE", str(path))
    return path


def test_by_itself_a_process_is_no_rank(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.write_text("")  # as for `mlx.launch -n 1`
    assert launch() is None
    monkeypatch.delenv("MLX_HOSTFILE")
    assert launch() is None
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    monkeypatch.delenv("MLX_RANK")
    assert launch() is None


def test_the_first_address_is_rank_0s(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch() == Launch(rank=1, host="10.0.0.1")
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_JACCL_COORDINATOR", "192.168.1.7:32323")
    monkeypatch.delenv("MLX_HOSTFILE")
    found = launch()
    assert found == Launch(rank=0, host="192.168.1.7")
    assert found.leads


@pytest.mark.parametrize(
    ("text", "said"), [("[]", "no list of addresses"), ("{", "no list of"), (None, "cannot read")]
)
def test_a_damaged_file_of_hosts_is_told(text: str | None, said: str, hosts: Path) -> None:
    if text is None:
        hosts.unlink()
    else:
        hosts.write_text(text)
    with pytest.raises(EmberError, match=f"MLX_HOSTFILE {hosts}.*{said}|{said} MLX_HOSTFILE"):
        launch()


def test_commands_that_several_ranks_do_not_run_say_so_once(
    hosts: Path, ember: Ember, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (ember("ls").code, ember("ls").err) == (0, "")
    monkeypatch.setenv("MLX_RANK", "0")
    told = ember("ls")
    assert told.code == 2
    assert told.error_line().endswith(
        "run, chat and serve alone use several ranks: start it without mlx.launch"
    )
