"""What a written value becomes: texts of --options, ranges of numbers, lists, and what null takes away from a base."""

import re
from dataclasses import fields, is_dataclass

import pytest
import yaml
from made import put

from docs.make_config import docs_page
from minigpt4 import cli, conversation, runners, tasks  # noqa: F401  (fill the registries, so that names are checked)
from minigpt4.common.config import PROJECT, load_config, read_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import Config, DatasetConfig

LAION = "datasets.laion"


def get(config, dotted: str):
    for name in dotted.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


# -- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("model.end_sym", "#END", "#END"),
        ("model.end_sym", "###", "###"),
        ("model.end_sym", "</s> #1", "</s> #1"),
        ("model.end_sym", "yes", "yes"),
        ("model.end_sym", "1e-3", "1e-3"),
        ("model.end_sym", "007", "007"),
        ("model.end_sym", "2024-01-02", "2024-01-02"),
        ("model.end_sym", "~", "~"),
        ("model.end_sym", "???", "???"),
        ("model.end_sym", "${x}", "${x}"),
        ("model.end_sym", "a: b", "a: b"),
        ("model.end_sym", "[INST]", "[INST]"),
        ("model.end_sym", "{end}", "{end}"),
        ("model.end_sym", '"it', '"it'),
        ("model.end_sym", "'it's'", "'it's'"),
        ("model.end_sym", "  x ", "  x "),
        ("model.end_sym", "", ""),
        ("model.end_sym", "null", None),
        ("model.end_sym", "'null'", "null"),
        ("model.end_sym", r'"\n"', "\n"),
        ("run.sample_question", "null", "null"),
        ("run.sample_question", "# of dogs?", "# of dogs?"),
        ("run.output_dir", "2024", "2024"),
        ("model.prompt", "on", "on"),
        (f"{LAION}.build_info.storage", "/d/{0..1}.tar #x", "/d/{0..1}.tar #x"),
        (f"{LAION}.build_info.storage", "{a,b}.tar", "{a,b}.tar"),
        (f"{LAION}.build_info.storage", "[a.tar, b.tar]", ["a.tar", "b.tar"]),
        (f"{LAION}.text_processor.train.prompt", "a photo: ", "a photo: "),
        ("run.sample_images", "dog #1.jpg", ["dog #1.jpg"]),
        ("run.sample_images", "[a.jpg, 'b #2.jpg']", ["a.jpg", "b #2.jpg"]),
        ("run.sample_images", "null", []),
        ("model.vit_kwargs", "{depth: 2}", {"depth": 2}),
        ("model.vit_kwargs.drop", "1e-3", 1e-3),
        ("model.extra.mark", "#END", "#END"),
        ("model.extra.mark", "a #b", "a #b"),
        ("model.extra.sizes", "[1, 2]", [1, 2]),
        ("model.low_resource", "8bit", "8bit"),
        ("model.low_resource", "True", True),
        ("run.grad_clip", "", None),
        ("run.init_lr", "1e-3", 1e-3),
    ],
)
def test_an_option_whose_key_is_a_text_is_taken_as_written(load, good, key, written, value):
    found = get(load(good, [f"{key}={written}"], mode="show"), key)
    assert found == value and type(found) is type(value)


def test_an_option_that_is_no_yaml_is_named(problems, good):
    (line,) = problems(good, ["model.vit_kwargs={a"], mode="show")
    assert line.startswith("--options 'model.vit_kwargs={a': ")
    assert problems(good, ["run.seed=#5"]) == ["run.seed: '#5' is a text; it should be a whole number"]
    assert problems(good, ["model.ckpt="]) == ["model.ckpt: '' should be a path, or null"]


@pytest.mark.parametrize("written", ["###", "#END", "#"])
def test_a_text_that_yaml_takes_for_a_comment(load, good, written):
    text = yaml.safe_dump(good) + "\n"
    with pytest.raises(ConfigError, match=f"end_sym: YAML takes {written}.* for a comment; write it in quotes"):
        load(text.replace("model:\n", f"model:\n  end_sym: {written}\n") if written != "#" else
             text.replace("model:\n", "model:\n  end_sym: #.\n"))  # fmt: skip
    assert load(text.replace("model:\n", "model:\n  end_sym: # the template's\n")).model.end_sym is None


@pytest.mark.parametrize("value", [True, 3, 3e-5])
def test_a_text_of_a_file_that_yaml_reads_as_something_else(problems, good, value):
    put(good, "model.end_sym", value)
    (line,) = problems(good)
    assert line.startswith(f"model.end_sym: {value!r} is ") and line.endswith("should be a text: write it in quotes")


def test_a_text_is_a_list_of_one(load, problems, good):
    put(good, "run.report_to", "wand")
    assert problems(good) == ["run.report_to: 'wand' should be wandb or trackio (TensorBoard needs no key)"]
    put(good, "run.report_to", "trackio")
    assert load(good, mode="show").run.report_to == ["trackio"]
    put(good, "model.lora", {"target_modules": "q_proj"})
    assert load(good, mode="show").model.lora.target_modules == ["q_proj"]
    put(good, "run.sample_images", [7])
    assert "run.sample_images: 7 is a whole number; it should be a text: write it in quotes" in problems(good)


# -- ranges ---------------------------------------------------------------------------------------------------------


def numbers(cls=Config, prefix=""):
    """(key, its field) for every number of the schema; those of a dataset below `laion`."""
    for f in fields(cls):
        kinds = [k for k in (f.type, *getattr(f.type, "__args__", ())) if not isinstance(k, str)]
        if f.metadata and f.name == "datasets":
            yield from numbers(DatasetConfig, f"{LAION}.")
        elif f.metadata and {int, float, list[float]} & set(kinds):
            yield f"{prefix}{f.name}", f
        for inner in kinds:
            if is_dataclass(inner) and f.name != "datasets":
                yield from numbers(inner, f"{prefix}{f.name}.")


NUMBERS = dict(numbers())


def test_every_number_has_a_range():
    assert len(NUMBERS) > 60
    assert [name for name, f in NUMBERS.items() if not f.metadata["limits"]] == []


@pytest.mark.parametrize("key", NUMBERS)
def test_nonsense_is_refused(tmp_path, key):
    """Every number: too small by one, NaN and infinity. The defaults are in range."""
    is_list = "list" in str(NUMBERS[key].type)
    for value in (-1, float("nan"), float("inf")):
        data: dict = {"datasets": {"laion": {}}}
        put(data, key, [0.5, value, 0.5] if is_list else value)
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
        _, found = read_config(str(tmp_path / "c.yaml"), mode="show")
        about = [line for line in found if line.startswith(f"{key}: ")]
        assert len(about) == 1 and " should be " in about[0], found


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("run.init_lr", -3, "run.init_lr: -3.0 should be above 0"),
        ("run.grad_clip", -1, "run.grad_clip: -1.0 should be above 0, or null"),
        ("run.grad_clip", 0, "run.grad_clip: 0.0 should be above 0, or null"),
        ("run.weight_decay", -0.05, "run.weight_decay: -0.05 should be at least 0"),
        ("run.weight_decay", "nan", "run.weight_decay: nan should be a finite number, at least 0"),
        ("run.batch_size_eval", 0, "run.batch_size_eval: 0 should be at least 1"),
        ("run.seed", -1, "run.seed: -1 should be at least 0 and below 4294967296"),
        ("run.max_bad_share", 5, "run.max_bad_share: 5.0 should be at least 0 and at most 1"),
        ("run.ema_decay", 1, "run.ema_decay: 1.0 should be above 0 and below 1, or null"),
        ("run.warmup_steps", 1001, "run.warmup_steps: 1,001 are more than the run's 1,000 steps"),
        ("run.min_lr", 1e-2, "run.min_lr: 0.01 is above init_lr 0.001, but it is where the rate falls to; write less"),
        ("model.low_resource", 1, "model.low_resource: 1 should be one of False, True, 8bit, 4bit"),
        ("model.low_resource", 0, "model.low_resource: 0 should be one of False, True, 8bit, 4bit"),
        ("model.drop_path_rate", 1, "model.drop_path_rate: 1.0 should be at least 0 and below 1"),
        ("model.lora", {"dropout": 1.5}, "model.lora.dropout: 1.5 should be at least 0 and below 1"),
        (f"{LAION}.sample_ratio", float("inf"), f"{LAION}.sample_ratio: inf should be a finite number, at least 0"),
        (f"{LAION}.vis_processor.train.std", [0.5, 0, 0.5], f"{LAION}.vis_processor.train.std: 0.0 should be above 0"),
        (f"{LAION}.vis_processor.train.min_scale", 2, f"{LAION}.vis_processor.train.min_scale: 2.0 should be above 0"),
        ("run.min_lr", 2e-3, "run.min_lr: 0.002 is above init_lr 0.001"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_told_with_the_others(problems, good, key, value, problem):
    put(good, key, value)
    found = problems(good, ["run.log_freq=0", "run.sede=1"])
    assert "run.log_freq: 0 should be at least 1" in found and "run.sede: unknown key; did you mean 'seed'?" in found
    assert [line for line in found if line.startswith(problem)], found
    assert len(found) == 3


def test_a_warm_up_rises(problems, load, good):
    put(good, "run.warmup_lr", 0.5)
    assert load(good).run.warmup_lr == 0.5  # there is none
    put(good, "run.warmup_steps", 5)
    assert problems(good)[0].startswith("run.warmup_lr: 0.5 is above init_lr 0.001, but the warm-up rises from it")
    put(good, "run.lr_sched", "constant_lr")
    put(good, "run.min_lr", 1)  # not used by it
    assert len(problems(good)) == 1


def test_the_docs_of_a_key_say_its_range(capsys):
    file = str(PROJECT / "train_configs/quickstart_stage1.yaml")
    assert cli.main(["config", "--docs", "--cfg-path", file]) == 0
    said = capsys.readouterr().out
    assert re.search(r"run\.ema_decay .*\n    Decay of a moving average [^()]*\(above 0 and\s+below 1\)\.\n", said)
    assert re.search(r"run\.batch_size_eval .*\n    Samples .* \(at least 1\)\.\n", said)
    assert said.index("run.max_bad_share") < said.index("model.model_type") < said.index("run.distributed")


def test_the_page_of_all_keys_is_up_to_date():
    page = (PROJECT / "docs/config.md").read_text()
    assert page == "\n".join(docs_page()) + "\n", "run `python docs/make_config.py > docs/config.md`"
    assert "| `image_size` | `224` | Side of the square input image, in pixels (at least 1). |" in page
    assert page.index("`model.model_type`") > page.index("`max_bad_share`")


# -- null, over a base ----------------------------------------------------------------------------------------------


@pytest.fixture
def over(good, tmp_path):
    """over(text, options) -> config and problems of a file with this text whose base is `good` and one more dataset."""
    good["datasets"]["cc_sbu"] = good["datasets"]["laion"]
    put(good, "model.lora", {"r": 2})
    put(good, "model.vit_kwargs", {"depth": 2})
    put(good, f"{LAION}.vis_processor.eval", {"name": "blip2_image_eval"})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(good))

    def over(text, options=()):
        (tmp_path / "over.yaml").write_text(f"base: base.yaml\n{text}")
        return read_config(str(tmp_path / "over.yaml"), options)

    return over


@pytest.mark.parametrize("text", ["datasets: {cc_sbu: null}\n", "datasets:\n  cc_sbu:\n", "datasets: {cc_sbu: ~}\n"])
def test_a_dataset_that_is_null_is_taken_away(over, text):
    config, problems = over(text)
    assert (list(config.datasets), problems) == (["laion"], [])
    assert not [key for key in config.origin if "cc_sbu" in key]


def test_a_dataset_can_be_taken_away_by_an_option_and_named_again(over, load, good):
    assert list(over("", ["datasets.cc_sbu=null"])[0].datasets) == ["laion"]
    config, _ = over("datasets: {cc_sbu: null}\n", ["datasets.cc_sbu.sample_ratio=3"])
    assert config.datasets["cc_sbu"].sample_ratio == 3
    assert config.datasets["cc_sbu"].build_info.storage.startswith("/path/to/")  # nothing is left of the base's


@pytest.mark.parametrize("text", ["datasets: null\n", "datasets: {}\n", "datasets: {laion: null, cc_sbu: null}\n"])
def test_no_datasets_is_one_error(over, text):
    _, problems = over(text + "run: {early_stop: 2}\n")
    assert problems == ["datasets: nothing to train on; name at least one dataset, with a sample_ratio above 0"]


@pytest.mark.parametrize(
    ("key", "value"), [("model.lora", None), ("model.vit_kwargs", {}), (f"{LAION}.vis_processor.eval", None)]
)
def test_null_takes_away_what_may_be_left_out(over, key, value):
    text: dict = {}
    put(text, key, None)
    config, problems = over(yaml.safe_dump(text))
    assert (get(config, key), problems) == (value, [])
    config, problems = over("", [f"{key}=null"])
    assert (get(config, key), problems) == (value, [])
    assert config.origin[key] == "--options" and not [k for k in config.origin if k.startswith(f"{key}.")]


# -- the form of training -------------------------------------------------------------------------------------------

CHATML = {"prompt_template": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "end_sym": "<|im_end|>"}
VICUNA = {"prompt_template": "###Human: {} ###Assistant: ", "end_sym": "###"}


@pytest.mark.parametrize(
    ("template", "base", "written"),
    [("vicuna_v0", CHATML, "model.prompt_path"), ("chatml", VICUNA, "model.prompt_path"),
     ("vicuna_v0", CHATML, f"{LAION}.prompt_path"), ("chatml", VICUNA | {"prompt_template": None}, None),
     ("vicuna_v0", CHATML | {"end_sym": None}, "model.prompt_path")],
)  # fmt: skip
def test_training_asks_and_ends_as_the_chat_does(over, good, tmp_path, template, base, written):
    good["model"] |= base | {"conv_template": {"chatml": "vicuna_v0", "vicuna_v0": "chatml"}[template]}
    if written:
        put(good, written, "prompts/alignment.txt")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(good))
    assert over("")[1] == []
    _, problems = over(f"model: {{conv_template: {template}}}\n")
    keys = {key for key in base if base[key] and (written or key == "end_sym")}
    assert {line.split(":")[0].removeprefix("model.") for line in problems} == keys
    for line in problems:
        assert f"chat ({template})" in line and ", or null" in line
    own = {"conv_template": template, "prompt_template": None, "end_sym": {"vicuna_v0": "###"}.get(template)}
    assert over(yaml.safe_dump({"model": own}))[1] == []


def test_a_caption_without_a_prompt_ends_with_a_newline_in_every_template(load, good):
    good["model"] |= {"conv_template": "chatml", "end_sym": "\n"}
    assert load(good).model.end_sym == "\n"


# -- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"), [("nope.yaml", ""), ("tiny_word.yaml", "; did you mean 'tiny_words'?"), ("a.yaml", "")]
)
def test_a_file_like_the_one_that_is_not_there(tmp_path, monkeypatch, wrong, said):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny_words.yaml", "tiny_stage1.yaml", "b.yaml"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError) as caught:
        load_config(wrong)
    assert str(caught.value) == f"{wrong}: no such config file{said}"


def test_a_list_of_what_is_known_is_short(problems, good):
    put(good, "model.zzzz", 1)
    put(good, "run.zzzz", 1)
    for line in problems(good):
        assert "zzzz: unknown key; known: " in line and " more" in line and len(line) < 220


def test_a_config_with_a_byte_order_mark(good, tmp_path):
    (tmp_path / "c.yaml").write_text("\ufeff" + yaml.safe_dump(good), encoding="utf-8")
    assert load_config(str(tmp_path / "c.yaml")).run.init_lr == 1e-3
