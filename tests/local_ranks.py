"""Processes of this machine that are ranks of one group, as `mlx.launch -n 3` starts them."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from socket import socket

from tests.patience import patience

ROOT = Path(__file__).parents[1]


def start_ranks(
    command: Sequence[str], count: int, folder: Path, **environment: str
) -> list[subprocess.Popen[str]]:
    """`count` processes with MLX's ring between them, over loopback."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]))
    # Kernels' threads of several ranks would wait for each other's cores.
    alike = dict(os.environ) | {"EMBER_THREADS": "1", "MLX_HOSTFILE": str(hosts)} | environment
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=alike | {"MLX_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(started: Sequence[subprocess.Popen[str]]) -> list[tuple[str, str, int]]:
    """Of each process, once all have ended: stdout, stderr, exit code."""
    try:
        told = [process.communicate(timeout=patience(120)) for process in started]
    finally:
        # One that hangs waits for another that failed.
        for process in started:
            process.kill()
            process.wait()
    return [(*each, process.returncode) for each, process in zip(told, started, strict=True)]


def told_by_ranks(command: Sequence[str], count: int, folder: Path) -> list[str]:
    """What each of `count` ranks says, all of which end well."""
    every = ended(start_ranks(command, count, folder))
    assert [code for *_, code in every] == [0] * count, every
    return [out for out, *_ in every]


def _free_ports(count: int) -> list[int]:
    sockets = [socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
