"""Collect the wheels that a GPU machine without a package index lacks: `python tests/gpu/wheels.py --out wheels`.

It is for machines that have PyTorch, transformers, timm and accelerate. The versions are those of pyproject.toml.
"""

import argparse
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

NEEDED = ("omegaconf", "webdataset", "braceexpand", "torchdata", "bitsandbytes")
GLIBC = (28, 24, 17)  # pip matches each of these exactly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=NEEDED, help=f"packages (default: {' '.join(NEEDED)})")
    parser.add_argument("--out", type=Path, default=Path("wheels"))
    parser.add_argument("--python-version", default="3.12", help="of the GPU machine (default: %(default)s)")
    parser.add_argument("--machine", default="x86_64", help="its processor (default: %(default)s)")
    parser.add_argument("--cuda", default="130", help="of its PyTorch: 130 for 13.0 (default: %(default)s)")
    args = parser.parse_args()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    pinned = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    exact = {re.split("[=<>\\[]", line)[0]: line for line in pinned if "==" in line}
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--implementation", "cp", "--python-version", args.python_version, "--dest", str(args.out),
         *(word for glibc in GLIBC for word in ("--platform", f"manylinux_2_{glibc}_{args.machine}")),
         *(exact.get(name, name) for name in args.names)],
        check=True,
    )  # fmt: skip
    for wheel in args.out.glob("bitsandbytes-*.whl"):
        keep_cuda(wheel, args.cuda)
    for wheel in sorted(args.out.glob("*.whl")):
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel}")
    print(
        f"On the GPU machine: python3 -m pip install --no-index --no-deps --target site {args.out}/*.whl\n"
        "and then: PYTHONPATH=site python3 -m tests.gpu --out results.json"
    )


def keep_cuda(wheel: Path, cuda: str) -> None:
    """bitsandbytes brings a library for each CUDA, ROCm and XPU version, 41 MiB in all: only one of them is kept."""
    other = re.compile(rf"libbitsandbytes_(?!cuda{cuda}\.|cpu\.)\w+\.so")
    new = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as slim:
        if not any(f"_cuda{cuda}." in name for name in old.namelist()):
            raise SystemExit(f"{wheel} has no library for CUDA {cuda}; write another --cuda")
        for name in old.namelist():
            if name.endswith(".dist-info/RECORD"):
                lines = old.read(name).decode().splitlines(keepends=True)
                slim.writestr(name, "".join(line for line in lines if not other.search(line)))
            elif not other.search(name):
                slim.writestr(old.getinfo(name), old.read(name))
    new.replace(wheel)


if __name__ == "__main__":
    main()
