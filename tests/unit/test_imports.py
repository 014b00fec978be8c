"""Who may import whom, read from the sources."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "minigpt4"
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"common", "weights", "processors", "models", "conversation", "runners", "datasets", "tasks"}
MAY_IMPORT = {
    "common": set(),
    "weights": {"common"},
    "processors": {"common"},
    "models": {"common", "conversation"},  # the conversation template says how training writes prompts
    "conversation": {"common", "processors"},
    "runners": {"common"},
    "datasets": {"common", "processors"},
    "tasks": {"common", "processors", "models", "datasets", "conversation"},  # answers are shown as training goes on
    # These join across.
    "serve": BASE,
    "evaluation": BASE | {"serve"},
    "curation": BASE | {"serve", "evaluation"},
    "convert": BASE | {"serve"},
    "checkup": BASE | {"serve", "evaluation", "convert"},
}


@cache
def imported(file: Path) -> set[str]:
    """Full names of what a file imports, anywhere in it; `from a import b` gives a.b."""
    names = set()
    package = file.relative_to(PROJECT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str | None:
    """minigpt4.models.llm.x -> models"""
    parts = name.split(".")
    return parts[1] if parts[0] == "minigpt4" and len(parts) > 1 else None


BESIDE = {"recipes", "bench", "tests"}  # the folders beside the package, not in the wheel


def test_the_package_does_not_import_what_lies_beside_it():
    """cli.py loads the recipes' verbs by name, where they are there."""
    assert not {f"{f}: {name}" for f in FILES for name in imported(f) if name.split(".")[0] in BESIDE}


def test_the_bench_imports_the_package_alone():
    """It measures what users have; neither the recipes nor the tests import it."""
    files = sorted(PROJECT.glob("bench/*.py"))
    assert "minigpt4.runners.runner.Runner" in set().union(*map(imported, files))
    assert not {f"{f}: {n}" for f in files for n in imported(f) if n.split(".")[0] in BESIDE - {"bench"}}
    others = [*PROJECT.glob("recipes/**/*.py"), *PROJECT.glob("*.py")]
    assert not {f"{f}: {n}" for f in others for n in imported(f) if n.split(".")[0] == "bench"}
    assert [str(f) for f in files if len(f.read_text(encoding="utf-8").splitlines()) > 300] == []


def test_the_reader_reads():
    names = imported(PACKAGE / "datasets/builders/__init__.py")
    assert "minigpt4.common.registry.DATASETS" in names and "minigpt4.datasets.stream.Source" in names
    assert "minigpt4.datasets.builders" in imported(PACKAGE / "datasets/__init__.py")


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(name):
    files = [f for f in FILES if f.relative_to(PACKAGE).parts[0] == name]
    assert files
    wrong = {
        f"{file.relative_to(PROJECT)} imports {other}"
        for file in files
        for other in imported(file)
        if room(other) not in {None, name} | MAY_IMPORT[name]
    }
    assert wrong == set()


def test_no_file_imports_itself_by_others():
    """Neither at the top of a file nor inside a function."""
    modules = {".".join(("minigpt4", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): f
               for f in FILES}  # fmt: skip
    needs = {
        module: {next((n for n in (name, name.rpartition(".")[0]) if n in modules), module) for name in imported(file)}
        - {module}
        for module, file in modules.items()
    }
    while free := [module for module in needs if not needs[module] & needs.keys()]:
        for module in free:
            del needs[module]
    assert not needs, "these import each other in a circle, or lead into one"


def test_every_room_says_what_it_is_for():
    """Its `__init__.py` opens with a map."""
    rooms = [f for f in FILES if f.name == "__init__.py" and f.parent.parent == PACKAGE]
    assert {f.parent.name for f in rooms} >= set(MAY_IMPORT)
    short = [str(f) for f in rooms if len((ast.get_docstring(ast.parse(f.read_text())) or "").splitlines()) < 2]
    assert short == []


def test_no_star_imports():
    star = re.compile(r"^[ \t]*from\s.*\simport\s*\*", re.MULTILINE)
    assert star.search("import a\n    from .b import *\n")
    files = [*FILES, *PROJECT.glob("*.py"), *PROJECT.glob("tests/**/*.py")]
    assert [str(file) for file in files if star.search(file.read_text(encoding="utf-8"))] == []


def test_importing_the_package_does_no_work():
    """`import minigpt4` and the command's `--help` come back at once: no torch. What reads configs and data needs it,
    but none of the packages that only a model needs: each costs half a second or more."""
    code = (
        "import sys, minigpt4.cli, minigpt4.common.config; print(*sys.modules)\n"
        "import minigpt4.serve.describe, minigpt4.checkup.show_config, minigpt4.checkup.data; print(*sys.modules)\n"
        "import minigpt4.models.mini_gpt4; print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    help_page, data, model = (set(line.split()) for line in out.stdout.splitlines())
    light = {"torch", "transformers", "webdataset", "torchdata"}
    heavy = {"transformers.models", "torch._dynamo", "torchvision", "torchao", "timm", "accelerate", "sympy", "peft",
             "bitsandbytes", "gradio", "matplotlib", "pandas", "tensorboard"}  # fmt: skip
    assert help_page & (light | heavy) == set()
    assert light <= data and data & heavy == model & heavy == set()
