"""Who may import whom, read from the sources."""

import ast
import subprocess
import sys
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


def imported(file: Path) -> set[str]:
    """Full names of what a file imports, anywhere in it; `from a import b` gives a.b."""
    names = set()
    package = ("minigpt4", *file.relative_to(PACKAGE).parent.parts)
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


def test_the_package_does_not_import_the_recipes():
    """They are not in the wheel; cli.py loads their verbs by name, where they are there."""
    assert not {f"{f}: {name}" for f in FILES for name in imported(f) if name.split(".")[0] == "recipes"}


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
    stars = {
        str(file.relative_to(PROJECT))
        for file in [*FILES, *PROJECT.glob("*.py"), *PROJECT.glob("tests/**/*.py")]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    }
    assert stars == set()


def test_importing_the_package_does_no_work():
    """`import minigpt4` and the command's `--help` come back at once: no torch."""
    code = (
        "import sys, minigpt4, minigpt4.cli, minigpt4.common.config\n"
        "print({'torch', 'transformers', 'gradio', 'timm'} & set(sys.modules) or 'none')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert out.stdout.strip() == "none"
