"""Dependencies point one way: app -> models -> kvcache, and inside each package."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kvcache", "models", "app")
FORBIDDEN = {
    "kvcache": {"models", "app", "tests", "tokenizers", "gguf", "textual", "rich"},
    "models": {"app", "tests", "textual", "rich"},
    "app": {"tests"},
}
_CODECS = {"kvcache.codecs", "kvcache.errors", "kvcache.given"}
_NATIVE = {*_CODECS, "kvcache.cache_folder", "kvcache.native"}
_KERNELS = {*_NATIVE, "kvcache.gpu"}
# What tiers hold and who sees it: below kernels and tiers, which both read it.
_HELD = {"kvcache.snapshot", "kvcache.sight"}
_SETTINGS = {"kvcache.config", "kvcache.checks", "kvcache.cpu_memory", "kvcache.reference"}
_FILE = {"models.gguf", "models.errors", "models.assumptions"}
# Of a folder: what its modules may import of their own package.
BELOW = {
    "kvcache.codecs": _CODECS,
    "kvcache.native": _NATIVE,
    "kvcache.snapshot": {*_CODECS, "kvcache.snapshot"},
    "kvcache.given": {"kvcache.errors"},
    "kvcache.sight": {"kvcache.errors", "kvcache.reference", "kvcache.turn", "kvcache.sight"},
    "kvcache.gpu": {*_CODECS, *_HELD, "kvcache.gpu", "kvcache.reference"},
    "kvcache.fetched": {
        *_HELD,
        "kvcache.fetched",
        "kvcache.reference",
        "kvcache.tiers",
        "kvcache.turn",
    },
    "kvcache.tiers": {*_KERNELS, *_SETTINGS, *_HELD, "kvcache.turn", "kvcache.tiers"},
    "kvcache.unencoded": {
        "kvcache.given",
        "kvcache.attention",
        "kvcache.errors",
        "kvcache.integrity",
        "kvcache.native",
        "kvcache.sight",
        "kvcache.stats",
        "kvcache.unencoded",
        *_SETTINGS,
    },
    "models.gguf": _FILE,
    "models.native": {*_FILE, "models.native"},
    "models.gpu": {*_FILE, "models.gpu"},
    "models.network": {*_FILE, "models.native", "models.gpu", "models.network"},
    "models.text": {*_FILE, "models.text"},
    "models.finding": {"models.errors", "models.finding"},
    "app.bench.figures": {"app.bench.figures", "app.memory"},
    "app.bench.showing": {"app.bench.showing", "app.inert", "app.streams", "app.texts"},
    "app.bench.engines": {
        "app.bench.engines",
        "app.bench.environment",
        "app.engine",
        "app.layer_losses",
        "app.rss",
    },
    "app.line_input": set(),
    "app.line_editor": {
        "app.inert",
        "app.interrupt",
        "app.line_input",
        "app.lost_end",
        "app.streams",
        "app.chat.completion",
    },
    "app.lost_end": set(),
    "app.units": set(),
    "app.toml_file": {"app.private"},
    "app.wake": {"app.engine", "app.private", "app.wake"},
    "app.tui.text": {"app.inert", "app.sessions", "app.tui.text", "app.units"},
    "app.tui.terminal": {"app.inert", "app.lost_end", "app.tui.terminal"},
}
# Of a folder or a module: what lies above it.
ABOVE = {
    "app.engine": {
        "app.chat_tokens",
        "app.wake",
        "models.text.chat_template",
        "models.text.messages",
        "models.text.tokenized_text",
    },
    "app.generation": {"app.chat_tokens", "models.text"},
    "models.text.thinking": {"models.text.messages", "models.text.template_process"},
    "models.text.template_thinking": {"models.text.messages", "models.text.template_process"},
    "kvcache.tiers": {"kvcache.holding", "kvcache.layer_cache", "kvcache.two_tier"},
    "models.network.llama": {"models.native", "models.network.cpu_llama"},
    "app.sessions": {"app.chat", "app.service", "app.tui", "app.bench", "app.commands"},
    "app.bench": {"app.chat", "app.service", "app.tui", "app.commands"},
    "app.bench.sections": {"app.bench.report", "app.bench.readme", "app.bench.compare"},
    "app.tui": {"app.commands", "app.bench"},
    "app.service": {"app.chat", "app.tui", "app.commands"},
    "app.chat": {"app.line_chat", "app.tui", "app.commands"},
    "app.line_chat": {"app.tui", "app.commands"},
    "app.tui.widgets": {"app.tui.screens", "app.tui.commands", "app.tui.app"},
    "app.tui.screens": {"app.tui.commands", "app.tui.app"},
    "app.tui.commands": {"app.tui.app"},
}
# Files that a folder may have beside its own folders.
MOST_FILES = {"kvcache": 26, "app/bench": 12, "app/chat": 18, "app/tui": 12}
# A chat is saved, shown and asked for; sections, screens and commands are named for things.
SAME_NAMES: dict[str, set[str]] = {
    "kvcache": set(),
    "models": set(),
    "app": {
        "chat.py",
        "chats.py",
        "completion.py",
        "memory.py",
        "report.py",
        "schema.py",
        "search.py",
        "settings.py",
    },
}


def _modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    """Whole names, wherever in the file and for whatever reason they are imported."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = named & MODULES.keys()
            found |= modules if len(modules) == len(named) else {node.module, *modules}
    return found


IMPORTS = {name: _imports(path) for name, path in MODULES.items()}


def _lies_in(name: str, folders: set[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}.") for folder in folders)


def _inside(folder: str) -> list[str]:
    found = [name for name in MODULES if _lies_in(name, {folder})]
    assert found, f"no folder {folder}"
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_a_higher_one(package: str) -> None:
    found = {name: {each.split(".")[0] for each in IMPORTS[name]} for name in _inside(package)}
    assert {name: both for name, each in found.items() if (both := each & FORBIDDEN[package])} == {}


def test_gguf_py_decodes_and_gives_grids() -> None:
    found = {
        name for name in MODULES if any(each.split(".")[0] == "gguf" for each in IMPORTS[name])
    }
    assert found == {"models.gguf.decode", "models.gguf.grids"}


@pytest.mark.parametrize("folder", BELOW)
def test_folders_import_what_lies_below(folder: str) -> None:
    package = folder.split(".")[0]
    assert all(_inside(below) for below in BELOW[folder])
    offenders = {
        (name, each)
        for name in _inside(folder)
        for each in IMPORTS[name]
        if _lies_in(each, {package}) and not _lies_in(each, BELOW[folder])
    }
    assert offenders == set()


@pytest.mark.parametrize("folder", ABOVE)
def test_folders_do_not_import_what_lies_above(folder: str) -> None:
    assert all(_inside(above) for above in ABOVE[folder])
    offenders = {
        (name, each)
        for name in _inside(folder)
        for each in IMPORTS[name]
        if _lies_in(each, ABOVE[folder])
    }
    assert offenders == set()


def test_no_modules_import_each_other() -> None:
    graph = {name: each & MODULES.keys() - {name} for name, each in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("folder", MOST_FILES)
def test_folders_are_small_enough_to_look_through(folder: str) -> None:
    files = [path.name for path in (ROOT / folder).glob("*.py")]
    assert len(files) <= MOST_FILES[folder], sorted(files)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_is_a_place(package: str) -> None:
    """Two files of one name in a package lie in folders that say which is which."""
    names = Counter(MODULES[name].name for name in _inside(package))
    several = {name for name, count in names.items() if count > 1} - {"__init__.py"}
    assert several == SAME_NAMES[package]


@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        (
            "from app import cli; cli.parser()",
            {"mlx", "numpy", "tokenizers", "textual", "rich", "huggingface_hub", "shtab"},
        ),
        ("import app.line_chat", {"textual", "prompt_toolkit"}),
        ("import app.service.live_service", {"textual"}),
        ("import app.line_editor", {"textual"}),
    ],
)
def test_what_is_heavy_is_imported_by_who_needs_it(program: str, heavy: set[str]) -> None:
    script = f"import sys; {program}; print({heavy!r} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
