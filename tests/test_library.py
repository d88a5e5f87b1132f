"""What others' scripts meet: versions, help, types, lines, and a `models` of their own."""

import pydoc
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from venv import EnvBuilder

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

import app
import kvcache
import models
from kvcache import (
    BlockPool,
    CacheConfig,
    DynamicKVCache,
    PagedKVCache,
    RowsKVCache,
    TwoTierKVCache,
)
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama

ROOT = Path(__file__).parent.parent
SHAPE = LlamaShape(layers=1, width=64, ffn=96, heads=2, kv_heads=1, vocab=307, context=128)


def _run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)},
    )


def test_all_packages_are_of_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {kvcache.__version__, models.__version__, app.__version__} == {project["version"]}


def test_all_that_is_exported_is_there_and_in_order() -> None:
    for package in (kvcache, models):
        assert all(hasattr(package, name) for name in package.__all__)
    assert set(kvcache.CODECS) > {"f16", "q4", "hkivi4", "turbo4u", "trellis3"}
    assert kvcache.codec("trellis3").code_bits == 3


@pytest.mark.parametrize(
    ("thing", "calls"),
    [
        (kvcache, ("make_prompt_cache(", "generate_step(", "print(cache[0])")),
        (models, ("load(", ".tokenizer.encode(", "loaded.model(")),
        (TwoTierKVCache, ("from_config(", "cache.attend(", "print(cache)")),
    ],
)
def test_help_begins_with_what_most_scripts_need(thing: object, calls: tuple[str, ...]) -> None:
    shown = re.sub(r".\x08", "", pydoc.render_doc(thing)).splitlines()
    first = next(at for at, line in enumerate(shown) if calls[0] in line)
    assert first < 16
    for line, call in zip(shown[first:], calls, strict=False):
        assert call in line


def test_caches_show_what_they_hold_in_a_line() -> None:
    k = mx.ones((1, 2, 100, 64))
    two_tier = TwoTierKVCache.from_config(CacheConfig(max_tokens=80, hot=10, block=8, keys="q8/q4"))
    pool = BlockPool(9, kv_heads=2, head_dim=64)
    paged, dynamic = PagedKVCache(pool), DynamicKVCache(dtype="f32")
    rows = RowsKVCache([TwoTierKVCache.from_config(CacheConfig(max_tokens=80))], [0])
    for cache in (two_tier, paged, dynamic):
        cache.append(k, k)
    assert repr(two_tier).startswith(
        "TwoTierKVCache(q8/q4, 100 tokens: 4 sink, 16 hot, 56 cold, 24 evicted; "
    )
    assert repr(dynamic) == (
        "DynamicKVCache(f32, 100 tokens: 0 sink, 100 hot, 0 cold, 0 evicted; "
        "100.0 KiB of 256.0 KiB allocated)"
    )
    assert repr(paged).startswith("PagedKVCache(f16, 100 tokens: 0 sink, 100 hot")
    assert repr(pool) == "BlockPool(4 of 9 pages in use, 16384 bytes each)"
    assert repr(rows).startswith("RowsKVCache(1 rows, 0 tokens: ")
    large = DynamicKVCache(capacity=5000)
    large.append(k, k)
    assert repr(large).endswith("; 50.0 KiB of 2.44 MiB allocated)")
    assert "\n" not in "".join(map(repr, (two_tier, paged, dynamic, pool, rows)))


def test_types_are_seen_from_elsewhere(tmp_path: Path) -> None:
    """An environment of its own, in which the packages are installed and no source tree is."""
    EnvBuilder(symlinks=True).create(tmp_path / "env")
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    for package in ("kvcache", "models"):
        assert (ROOT / package / "py.typed").is_file()
        (site / package).symlink_to(ROOT / package)
    script = tmp_path / "script.py"
    script.write_text(
        "from kvcache import CacheConfig, DynamicKVCache, parse_bytes\n"
        "from models import load\n"
        "reveal_type(CacheConfig(hot=3).hot)\n"
        "reveal_type(DynamicKVCache(dtype='f32').capacity)\n"
        "reveal_type(parse_bytes('1MiB'))\n"
        "reveal_type(load('smollm2').name)\n"
        "CacheConfig(hott=3)\n"
    )
    options = ["--strict", "--follow-imports=silent", "--cache-dir", tmp_path / "cache"]
    python = ["--python-executable", tmp_path / "env" / "bin" / "python"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, [*options, *python, script])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert said[:4] == [
        'note: Revealed type is "int"',
        'note: Revealed type is "int"',
        'note: Revealed type is "int"',
        'note: Revealed type is "str"',
    ], done.stdout + done.stderr
    assert said[4].startswith('error: Unexpected keyword argument "hott" for "CacheConfig"')


def test_a_project_with_models_of_its_own_has_both(tmp_path: Path) -> None:
    page = (ROOT / "examples" / "own_models.py").read_text(encoding="utf-8")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("NAME = 'yours'\n")
    (tmp_path / "models" / "part.py").write_text("from models import NAME\n")
    vocabulary = sentencepiece_tokenizer(SHAPE.vocab)
    kind = every_matrix(TensorType.Q8_0)
    write_llama(
        tmp_path / "tiny.gguf", config=SHAPE, types=kind, tokenizer_metadata=vocabulary, seed=5
    )
    head = page[: page.index("\nloaded = ")]
    script = tmp_path / "main.py"
    script.write_text(
        "import models\n"
        + head
        + "\nloaded = ember_models().load('tiny.gguf', backend='reference')\n"
        + "import mlx.core as mx\n"
        + "from models import part\n"
        + "from models.part import NAME\n"
        + "cache = kvcache.make_prompt_cache(loaded.model)\n"
        + "logits = loaded.model(mx.array([loaded.tokenizer.encode('a cat')]), cache)\n"
        + "print(models.NAME, NAME, logits.shape[-1], ember_models() is not models)\n"
    )
    done = _run([sys.executable, script], tmp_path)
    assert done.stdout == "yours yours 307 True\n", done.stderr


def test_mlx_lms_kv_bits_are_said_to_be_ignored_once(recwarn: pytest.WarningsRecorder) -> None:
    from mlx_lm.generate import maybe_quantize_kv_cache

    ours, theirs = TwoTierKVCache.from_config(CacheConfig(max_tokens=80)), KVCache()
    k = mx.ones((1, 2, 3, 64))
    caches = [ours, theirs, ours]
    for cache in caches[:2]:
        cache.update_and_fetch(k, k)
    for _ in range(3):
        maybe_quantize_kv_cache(caches, 0, 64, 3)
        caches[1] = theirs
    (said,) = [each for each in recwarn if "kv_bits" in str(each.message)]
    assert "kv_bits=3 is ignored: the cache encodes older tokens" in str(said.message)
    assert caches == [ours, theirs, ours]
