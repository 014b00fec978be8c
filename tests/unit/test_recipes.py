"""The verbs whose code lies in recipes/, beside the package."""

import sys

import pytest

from minigpt4 import cli

VERBS = {verb: module for verb, (module, _) in cli.VERBS.items() if module.startswith("recipes.")}


@pytest.fixture
def elsewhere(monkeypatch):
    """As under the `minigpt4` command of an environment: the project's folder is not on the path."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(cli.PROJECT))])
    for name in [name for name in sys.modules if name.split(".")[0] == "recipes"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("verb", VERBS)
def test_a_recipe_is_found_from_anywhere(verb, elsewhere, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0 and "--out" in capsys.readouterr().out
    assert sys.modules[VERBS[verb]].__file__.startswith(str(cli.PROJECT))


@pytest.mark.parametrize("verb", VERBS)
def test_without_recipes_the_command_says_what_to_do(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "PROJECT", tmp_path)
    assert cli.main([verb]) == 1
    said = capsys.readouterr().err
    assert f"minigpt4 {verb}: it is in recipes/" in said and "clone the project" in said
    assert "Traceback" not in said
