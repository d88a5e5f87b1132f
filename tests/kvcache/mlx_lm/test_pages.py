"""What pages say of mlx-lm beside their blocks, which `tests/test_docs.py` runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlx_lm.models.cache import save_prompt_cache

from kvcache import Backend, BlockPool, CacheConfig, CacheError, DynamicKVCache, PagedKVCache
from kvcache.mlx_lm import make_prompt_cache
from tests.kvcache.tiny_llama import generate, make_model

ROOT = Path(__file__).parents[3]
PROMPT = [(7 * i + 3) % 101 for i in range(40)]


def _run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def _saved(tmp_path: Path) -> Path:
    model, path = make_model(), tmp_path / "cache.safetensors"
    config = CacheConfig(max_tokens=80, hot=16, block=8)
    cache = make_prompt_cache(model, config)
    generate(model, PROMPT, cache, 3)
    pool = BlockPool(20, kv_heads=2, head_dim=16, page_tokens=8, backend=Backend.REFERENCE)
    save_prompt_cache(str(path), [*cache, DynamicKVCache(50), PagedKVCache(pool)])
    return path


@pytest.mark.parametrize(
    ("found_by", "read_by"),
    [
        ("kvcache", "kvcache.load_prompt_cache"),
        ("kvcache.mlx_lm, mlx_lm.models.cache", "mlx_lm.models.cache.load_prompt_cache"),
    ],
)
def test_a_saved_cache_is_read_in_another_process(
    found_by: str, read_by: str, tmp_path: Path
) -> None:
    path = str(_saved(tmp_path))
    script = f"import {found_by}; print([c.offset for c in {read_by}({path!r})])"
    assert _run(script) == "[43, 43, 43, 0, 0]\n"


def test_the_comment_in_the_readme_is_true(folder: Path) -> None:
    """Its script with the model and the tokenizer of mlx-lm, as the comment says."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = (
        each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "or:" in each
    )
    line = r"(model, tokenizer = ).*  # or: mlx_lm\.load\(\.\.\.\)"
    code = re.sub("loaded = load.*\n", "", code)
    code, changed = re.subn(line, rf"\1mlx_lm.load({str(folder)!r})", code)
    assert changed == 1
    assert _run(f"import mlx_lm\n{code}").endswith("tokens held\n")


def test_caches_for_other_models_have_no_slack_unless_told() -> None:
    model = make_model()
    assert make_prompt_cache(model)[0].plan.sizes.slack == 16
    assert make_prompt_cache(model, CacheConfig(slack=3))[0].plan.sizes.slack == 3
    with pytest.raises(CacheError, match="got slack=-1, expected at least 0"):
        CacheConfig(slack=-1)
