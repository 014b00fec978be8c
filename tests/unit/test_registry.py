"""A registry that helps when a name is missing."""

import signal

import pytest

from minigpt4 import conversation, runners, tasks  # noqa: F401  (fill the registries)
from minigpt4.common.errors import ConfigError, DataError, Stopped, UserError, main_guard
from minigpt4.common.registry import (
    CONVERSATIONS,
    DATASETS,
    LR_SCHEDULES,
    MODELS,
    PROCESSORS,
    TASKS,
    Registry,
    RegistryError,
)


def test_a_miss_names_the_near_and_the_known():
    things = Registry("model.arch")
    things.register("mini_gpt4")(int)
    things.register("other")(str)
    assert things.get("mini_gpt4") is int
    with pytest.raises(RegistryError) as caught:
        things.get("mini_gtp4")
    assert str(caught.value) == (
        "model.arch 'mini_gtp4' is not registered; did you mean 'mini_gpt4'?; known: mini_gpt4, other"
    )
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, UserError)


def test_nothing_near_gets_no_suggestion():
    things = Registry("run.task")
    things.register("image_text_pretrain")(int)
    with pytest.raises(RegistryError, match=r"'zzz' is not registered; known: image_text_pretrain$"):
        things.get("zzz")


def test_a_name_is_taken_once():
    things = Registry("x")
    things.register("a")(int)
    with pytest.raises(ValueError, match="'a' is registered twice"):
        things.register("a")(str)
    assert things.get("a") is int


def test_the_decorator_gives_the_class_back_and_names_are_sorted():
    things = Registry("x")

    @things.register("b")
    @things.register("a")
    class Thing:
        pass

    assert things.get("a") is things.get("b") is Thing
    assert things.names() == ["a", "b"]


def test_what_ships_is_registered():
    assert "mini_gpt4" in MODELS.names()
    assert {"laion", "cc_sbu", "cc_sbu_align", "captioned_photos"} <= set(DATASETS.names())
    assert DATASETS.get("webdataset") is DATASETS.get("laion") is DATASETS.get("cc_sbu")
    assert {"blip2_image_train", "blip2_image_eval", "blip_caption", "plain_text"} <= set(PROCESSORS.names())
    assert "image_text_pretrain" in TASKS.names()
    assert {"linear_warmup_cosine_lr", "constant_lr"} <= set(LR_SCHEDULES.names())
    assert {"vicuna_v0", "chatml"} <= set(CONVERSATIONS.names())


def test_main_guard_shows_a_user_error_as_one_message(capsys):
    assert main_guard(lambda: MODELS.get("nope")) == 1
    assert capsys.readouterr().err.startswith("error: model.arch 'nope' is not registered; known: ")
    assert main_guard(lambda: None) == 0
    assert main_guard(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        main_guard(lambda: 1 / 0)


def test_a_config_error_is_told_by_one_process_only(monkeypatch, capsys):
    def fail(error):
        raise error

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    assert main_guard(lambda: fail(ConfigError("wrong key"))) == 1
    assert capsys.readouterr().err == ""
    assert main_guard(lambda: fail(DataError("my shard"))) == 1
    assert capsys.readouterr().err == "error: my shard\n"
    monkeypatch.setenv("RANK", "0")
    assert main_guard(lambda: fail(ConfigError("wrong key"))) == 1
    assert capsys.readouterr().err == "error: wrong key\n"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("RANK", "1")  # left over in the shell: there is no other process that would say it
    assert main_guard(lambda: fail(ConfigError("wrong key"))) == 1
    assert capsys.readouterr().err == "error: wrong key\n"


def test_a_signal_is_no_error(capsys):
    def fail(error):
        raise error

    assert main_guard(lambda: fail(Stopped("stopped; saved", signal.SIGINT))) == 130
    assert capsys.readouterr().err == "stopped; saved\n"
    assert main_guard(lambda: fail(Stopped("stopped; saved", signal.SIGTERM))) == 143
    assert main_guard(lambda: fail(KeyboardInterrupt())) == 130
    assert main_guard(lambda: fail(KeyboardInterrupt(signal.SIGTERM))) == 143
