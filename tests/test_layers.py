"""Dependencies point one way: app -> models -> kvcache."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "kvcache": {"models", "app", "tests", "tokenizers", "gguf", "textual", "rich"},
    "models": {"app", "tests", "textual", "rich", "gguf"},
    "app": {"tests"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_a_higher_one(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    offenders = {
        str(path.relative_to(ROOT)): both
        for path in files
        if (both := _imports(path) & FORBIDDEN[package])
    }
    assert offenders == {}


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'mlx_lm', 'transformers', 'tokenizers', 'textual', 'rich', 'huggingface_hub'}"
    script = f"import sys; from app import cli; cli.parser(); print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
