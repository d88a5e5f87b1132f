"""That threads share pieces without leaving one out or doing one twice, and how far in order."""

import subprocess
from pathlib import Path

import pytest

from kvcache.native.compilers import find_compiler
from models.native.kernels import SOURCES

# Every piece is counted; that thread 0 sleeps makes the others take its pieces from its end.
PROGRAM = """
#include <chrono>
#include <cstdio>
#include <thread>

#include "shares.h"

int main() {
    int wrong = 0, backwards = 0;
    for (int threads = 1; threads <= 5; ++threads)
        for (int pieces = 0; pieces < 97; ++pieces) {
            std::vector<std::atomic<int>> done(size_t(pieces) + 1);
            ember::Shares shares(pieces, threads);
            std::atomic<int> ready{0};
            std::vector<std::thread> all;
            for (int own = 0; own < threads; ++own)
                all.emplace_back([&, own] {
                    ++ready;
                    while (ready < threads) std::this_thread::yield();
                    if (own == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
                    shares.work(own, [&](int64_t piece) { ++done[size_t(piece)]; });
                });
            for (auto& each : all) each.join();
            for (int i = 0; i < pieces; ++i) wrong += done[size_t(i)] != 1;
            wrong += done[size_t(pieces)];
        }
    // Alone, a thread does its own share first, in order.
    ember::Shares shares(40, 4);
    int64_t next = 10;
    shares.work(1, [&](int64_t piece) {
        if (next < 20) backwards += piece != next++;
    });
    std::printf("%d %d\\n", wrong, backwards);
}
"""


@pytest.mark.parametrize("flags", [(), ("-fsanitize=thread",)], ids=["plain", "sanitized"])
def test_each_piece_is_done_once(tmp_path: Path, flags: tuple[str, ...]) -> None:
    source, program = tmp_path / "shares.cpp", tmp_path / "shares"
    source.write_text(PROGRAM)
    compiler = (find_compiler(), "-std=c++20", "-O1", "-pthread", *flags)
    where = f"-I{SOURCES.entry.parent}"
    subprocess.run([*compiler, where, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0 0\n"), done.stderr
