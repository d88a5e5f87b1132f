"""ember's `models` in a project that has a package of that name itself."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import kvcache


def ember_models() -> ModuleType:
    """ember's package, which stands beside `kvcache`; `import models` goes on meaning yours."""

    def taken_out() -> dict[str, ModuleType]:
        named = [name for name in sys.modules if name.split(".")[0] == "models"]
        return {name: sys.modules.pop(name) for name in named}

    yours, home = taken_out(), str(Path(kvcache.__file__).parent.parent)
    sys.path.insert(0, home)
    try:
        ours = import_module("models")
        for name in ours.__all__:
            getattr(ours, name)  # which imports what it needs
        return ours
    finally:
        sys.path.remove(home)
        taken_out()
        sys.modules.update(yours)


loaded = ember_models().load("smollm2")
print(loaded.name)
