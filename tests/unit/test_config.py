"""YAML -> typed config: merging, and every problem in one message."""

from dataclasses import fields, is_dataclass

import pytest
import yaml
from made import put

from minigpt4 import cli, conversation, runners, tasks  # noqa: F401  (fill the registries, so that names are checked)
from minigpt4.common.config import PROJECT, describe_config, load_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.paths import expand_shards, resolve_path
from minigpt4.common.schema import Config, DatasetConfig, ModelConfig, ProcessorConfig

INFO = "datasets.laion.build_info"


# -- the good case --------------------------------------------------------------------------------------------------


def test_a_good_config_is_typed_and_frozen(load, good):
    config = load(good)
    assert isinstance(config.model, ModelConfig)
    assert isinstance(config.datasets["laion"], DatasetConfig)
    assert config.datasets["laion"].vis_processor.train == ProcessorConfig(name="blip2_image_train")
    assert config.run.init_lr == 1e-3
    with pytest.raises(AttributeError):
        config.run.init_lr = 1


def test_later_wins(load, good):
    # schema default < configs/ < the YAML file < --options
    config = load(good)
    assert (config.run.log_freq, config.origin.get("run.log_freq")) == (10, None)
    assert config.model.vit_precision == "fp16"
    assert config.origin["model.vit_precision"] == "minigpt4/configs/models/minigpt4.yaml"

    put(good, "model.vit_precision", "bf16")
    config = load(good, ["run.init_lr=2e-3", "run.log_freq=7"])
    assert config.model.vit_precision == "bf16"
    assert config.origin["model.vit_precision"] == config.path
    assert (config.run.init_lr, config.origin["run.init_lr"]) == (2e-3, "--options")
    assert config.run.log_freq == 7
    assert config.origin["datasets.laion.data_type"] == "minigpt4/configs/datasets/laion/defaults.yaml"


def test_configs_override_the_schema(load, good):
    del good["datasets"]["laion"]["build_info"]
    config = load(good, mode="show")
    assert config.datasets["laion"].build_info.storage == "/path/to/laion/laion_dataset/{00000..10488}.tar"


def test_an_empty_section_means_its_defaults(load, good):
    assert load({**good, "run": None}).run == Config().run
    put(good, "model.qformer_kwargs", None)
    assert load(good).model.qformer_kwargs == ModelConfig().qformer_kwargs
    assert list(load({**good, "datasets": {"laion": None}}, mode="show").datasets) == ["laion"]
    assert load("", mode="show").model.arch == "mini_gpt4"


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("3E-5", 3e-5), ("1", 1.0), (".5", 0.5), ("1.e-3", 1e-3),
                                              ("'3e-5'", 3e-5), ('"0.1"', 0.1)])  # fmt: skip
def test_numbers_as_people_write_them(load, good, text, value):
    put(good, "run.min_lr", 0)
    file = yaml.safe_dump(good).replace("init_lr: 0.001", f"init_lr: {text}")
    assert f"init_lr: {text}\n" in file
    for config in (load(file), load(good, [f"run.init_lr={text}"])):
        assert config.run.init_lr == value
        assert type(config.run.init_lr) is float


def test_null_takes_a_path_away(load, good):
    put(good, "model.freeze_qformer", False)
    assert load(good, ["model.q_former_model=null"]).model.q_former_model is None


def test_an_option_with_equals_signs_and_braces(load, good):
    template = '"###Human: {} a=b ###Assistant: "'
    assert load(good, [f"model.prompt_template={template}"]).model.prompt_template == template.strip('"')


# -- problems -------------------------------------------------------------------------------------------------------


def test_all_problems_at_once(problems, good, tmp_path):
    put(good, "model.ckpt", "/path/to/stage1/checkpoint/")
    put(good, "model.image_size", "large")
    put(good, "model.arch", "mini_gtp4")
    put(good, "run.max_epochs", 3)
    put(good, "run.batch_size_train", 0)
    put(good, "datasets.laion.build_info.storage", str(tmp_path / "gone.tar"))
    found = problems(good, ["lr"])
    assert found == [
        "--options 'lr': write it as section.key=value",
        "model.image_size: 'large' is a text; it should be a whole number",
        "run.batch_size_train: 0 should be at least 1",
        "run.max_epochs: unknown key; did you mean 'max_epoch'?",
        "model.arch: 'mini_gtp4' is not registered; did you mean 'mini_gpt4'?",
        "model.ckpt: '/path/to/stage1/checkpoint/' is a placeholder; write a path: Checkpoint with the trained "
        "weights, of this project or of the original; null starts from random weights.",
        f"datasets.laion.build_info.storage: '{tmp_path}/gone.tar': no such file or folder",
    ]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("modell", {}, "modell: unknown key; did you mean 'model'?"),
        ("model.vit_modle", "x", "model.vit_modle: unknown key; did you mean 'vit_model'?"),
        ("model.qformer_kwargs.layers", 2, "model.qformer_kwargs.layers: unknown key; known: hidden_size, num_hidden"),
        ("datasets.laion.sample_ration", 2, "datasets.laion.sample_ration: unknown key; did you mean 'sample_ratio'?"),
        ("datasets.laoin", None, "datasets.laoin: 'laoin' is not registered; did you mean 'laion'?"),
        ("model.freeze_vit", "no way", "model.freeze_vit: 'no way' is a text; it should be True or False"),
        ("model.freeze_vit", 1, "model.freeze_vit: 1 is a whole number; it should be True or False"),
        ("model.vit_ckpt", 5, "model.vit_ckpt: 5 is a whole number; it should be a text"),
        ("model.vit_precision", "fp8", "model.vit_precision: 'fp8' should be one of fp32, fp16, bf16"),
        ("model.vit_kwargs", [1], "model.vit_kwargs: [1] is a list; it should be a section with keys of its own"),
        ("model", 3, "model: 3 should be a section with keys of its own"),
        ("datasets", ["laion"], "datasets: ['laion'] should be a section with keys of its own"),
        ("datasets.laion", "x", "datasets.laion: 'x' should be a section with keys of its own"),
        ("run.init_lr", "fast", "run.init_lr: 'fast' is a text; it should be a number"),
        ("run.max_epoch", 1.5, "run.max_epoch: 1.5 is a number; it should be a whole number"),
        ("run.max_epoch", True, "run.max_epoch: True is True or False; it should be a whole number"),
        ("run.seed", None, "run.seed: None is nothing (null); it should be a whole number"),
        ("run.task", "captioning", "run.task: 'captioning' is not registered; known: image_text_pretrain"),
        ("run.lr_sched", "cosine", "run.lr_sched: 'cosine' is not registered"),
        ("run.evaluate", True, "run.evaluate: True, but train.py only trains; leave it False"),
        ("run.num_workers", -1, "run.num_workers: -1 should be at least 0"),
        ("datasets.laion.sample_ratio", -1, "datasets.laion.sample_ratio: -1.0 should be at least 0"),
        ("model.conv_template", "vicuna", "model.conv_template: 'vicuna' is not registered; did you mean 'vicuna_v0'?"),
        ("model.prompt_template", "###Human:", "model.prompt_template: '###Human:' has no {} where the instruction"),
        ("model.qformer_kwargs.num_attention_heads", 7, "model.qformer_kwargs.num_attention_heads: 7 does not divide"),
        ("model.qformer_kwargs.num_attention_heads", 0, "model.qformer_kwargs.num_attention_heads: 0 should be at le"),
        ("model.vit_ckpt", None, "model.vit_ckpt: not set, so a frozen ViT would have random weights"),
        ("model.vit_ckpt", "s3://x/vit.pth", "model.vit_ckpt: 's3://x/vit.pth' is a URL that is not fetched her"),
        ("model.vit_ckpt", "https://x/v.pth#md5=1", "model.vit_ckpt: https://x/v.pth#md5=1: after # goes sha256="),
        ("model.prompt_path", "https://x/p.txt", "model.prompt_path: 'https://x/p.txt' is a URL that is not fetched h"),
        ("model.llama_model", "https://x/org/llm", "model.llama_model: 'https://x/org/llm': an LLM is a folder of"),
        ("model.llama_model", "org/llm-7b", "model.llama_model: 'org/llm-7b': no such file or folder; a model of"),
        ("model.device_map", "auto", "model.device_map: auto is for chat; in training each process holds"),
        ("model.device_map", "balanced", "model.device_map: 'balanced' should be one of auto"),
        ("model.max_memory", {"cpu": "1GB"}, "model.max_memory: set, but model.device_map is not"),
        ("model.low_resource", "3bit", "model.low_resource: '3bit' should be one of False, True, 8bit, 4bit"),
        ("run.resume_ckpt_path", "/none/c.pth", "run.resume_ckpt_path: '/none/c.pth': no such file or folder"),
        ("datasets.laion.build_info.storage", [1], "datasets.laion.build_info.storage: 1 is a whole number; it should"),
    ],
)  # fmt: skip
def test_each_problem_is_said_once(problems, good, key, value, problem):
    put(good, key, value)
    about = [line for line in problems(good) if line.startswith(f"{key}:") or line.startswith(problem[:20])]
    assert len(about) == 1
    assert about[0].startswith(problem)


def test_a_processor_is_asked_what_it_takes(problems, good):
    put(good, "datasets.laion.vis_processor", {"train": {"name": "blip2_image_eval", "min_scale": 0.8}})
    put(good, "datasets.laion.text_processor", {"train": {"name": "blip_captions", "max_words": 9}})
    assert problems(good) == [
        "datasets.laion.vis_processor.train.min_scale: blip2_image_eval takes no such key; it takes image_size, "
        "mean, std",
        "datasets.laion.text_processor.train.name: 'blip_captions' is not registered; did you mean 'blip_caption'?",
    ]


def test_the_image_sizes_agree(problems, load, good):
    put(good, "model.image_size", 56)
    assert problems(good) == [
        "datasets.laion.vis_processor.train.image_size: 224, but model.image_size is 56; write the same"
    ]
    put(good, "datasets.laion.vis_processor", {"train": {"name": "blip2_image_train", "image_size": 56}})
    assert load(good).datasets["laion"].vis_processor.train.kwargs() == {"image_size": 56}


def test_options_that_are_none(problems, good):
    assert problems(good, ["run.seed", "=3", "run.sede=4"]) == [
        "--options 'run.seed': write it as section.key=value",
        "--options '=3': write it as section.key=value",
        "run.sede: unknown key; did you mean 'seed'?",
    ]


def test_an_option_that_replaces_a_section(problems, good):
    assert "model: 3 should be a section with keys of its own" in problems(good, ["model=3"])


def test_chat_needs_a_checkpoint_but_no_data(problems, load, good, tmp_path):
    del good["datasets"]
    found = problems(good, mode="chat")
    assert found == ["model.ckpt: not set; chat needs a trained projection: write the path of a checkpoint_N.pth"]
    (tmp_path / "c.pth").touch()
    assert load(good, [f"model.ckpt={tmp_path}/c.pth"], mode="chat").model.ckpt.endswith("c.pth")
    assert "datasets: nothing to train on; name at least one dataset, with a sample_ratio above 0" in problems(good)


def test_files_that_are_no_config(load, tmp_path):
    for text, words in (
        ("- a\n- b\n", "holds a list, not the sections"),
        ("model: {arch", "not valid YAML"),
        ("model: ${nope.x}\n", "not valid YAML"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(text)
    (tmp_path / "config.yaml").write_bytes(b"\x89PNG\r\n\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(str(tmp_path / "config.yaml"))
    with pytest.raises(ConfigError, match=r"confg\.yaml: no such config file; did you mean 'config'\?"):
        load_config(str(tmp_path / "confg.yaml"))


# -- paths ----------------------------------------------------------------------------------------------------------


def test_shard_patterns(tmp_path, monkeypatch):
    for name in ("a1", "a2", "a10", "b1"):
        (tmp_path / f"{name}.tar").touch()

    def names(storage):
        return [s.replace(f"{tmp_path}/", "") for s in expand_shards(storage)]

    assert names(f"{tmp_path}/a*.tar") == ["a1.tar", "a10.tar", "a2.tar"]
    assert names(f"{tmp_path}/{{a,b}}*.tar") == ["a1.tar", "a10.tar", "a2.tar", "b1.tar"]
    assert names(f"{tmp_path}/x{{08..10}}.tar") == ["x08.tar", "x09.tar", "x10.tar"]  # not there, and not asked here
    assert names([f"{tmp_path}/b1.tar", f"{tmp_path}/a[12].tar"]) == ["b1.tar", "a1.tar", "a2.tar"]
    assert names("https://host/{0..1}*.tar") == ["https://host/0*.tar", "https://host/1*.tar"]
    assert names(f"{tmp_path}/none*.tar") == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/b*.tar") == ["b1.tar"]
    assert names("~/b1.tar") == ["b1.tar"]


def test_paths_are_looked_up_here_then_in_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_path("prompts/alignment.txt") == str(PROJECT / "prompts/alignment.txt")
    assert expand_shards("train_configs/minigpt4_s*.yaml") == [
        str(PROJECT / f"train_configs/minigpt4_stage{s}.yaml") for s in ("1_pretrain", "2_finetune")
    ]
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/alignment.txt").touch()
    assert resolve_path("prompts/alignment.txt") == "prompts/alignment.txt"


def test_missing_shards_are_counted(problems, good, tmp_path):
    put(good, "datasets.laion.build_info.storage", str(tmp_path / "{0..4}.tar"))
    assert problems(good) == [
        f"datasets.laion.build_info.storage: 3 of 5 files are missing, the first {tmp_path}/2.tar; "
        "to use those that are there, write a pattern with *"
    ]
    put(good, "datasets.laion.build_info.storage", str(tmp_path / "z*.tar"))
    assert problems(good) == [f"datasets.laion.build_info.storage: '{tmp_path}/z*.tar': no such file or folder"]
    put(good, "datasets.laion.build_info.storage", str(tmp_path / "{0..1.tar"))
    assert problems(good)[0].startswith(f"datasets.laion.build_info.storage: '{tmp_path}/{{0..1.tar' is not a pattern")


def test_shards_on_other_machines_are_not_asked_for(load, good):
    put(good, "datasets.laion.build_info.storage", "https://host/{0..4}.tar")
    assert load(good).datasets["laion"].build_info.storage == "https://host/{0..4}.tar"


# -- what ships -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "mode", "keys"),
    [
        (
            "train_configs/minigpt4_stage1_pretrain.yaml", "train",
            ["model.vit_ckpt", "model.q_former_model", "model.llama_model", "datasets.laion.build_info.storage",
             "datasets.cc_sbu.build_info.storage"],
        ),
        (
            "train_configs/minigpt4_stage2_finetune.yaml", "train",
            ["model.vit_ckpt", "model.q_former_model", "model.llama_model", "model.ckpt",
             "datasets.cc_sbu_align.build_info.storage"],
        ),
        (
            "eval_configs/minigpt4_eval.yaml", "chat",
            ["model.vit_ckpt", "model.q_former_model", "model.llama_model", "model.ckpt"],
        ),
    ],
)  # fmt: skip
def test_full_size_configs_lack_only_their_paths(file, mode, keys):
    with pytest.raises(ConfigError) as caught:
        load_config(str(PROJECT / file), mode=mode)
    lines = str(caught.value).splitlines()[1:]
    assert {line.strip().split(":")[0] for line in lines} == set(keys) and len(lines) == len(keys)
    assert all(" is a placeholder; write a path: " in line for line in lines)


@pytest.mark.parametrize(
    "file", sorted([*PROJECT.glob("*_configs/*.yaml"), *PROJECT.glob("recipes/*/*.yaml")]), ids=lambda f: f.stem
)
def test_every_shipped_config_is_well_formed(file):
    assert max(map(len, file.read_text().splitlines())) < 110
    config = load_config(str(file), mode="show")
    of_a_recipe = dict.fromkeys(["stage0", "stage1", "stage2", "ablation"], "mini_gpt4_captions")
    of_a_recipe |= {"words": "mini_gpt4_words"}
    assert config.model.arch == of_a_recipe.get(file.stem, "mini_gpt4")


def test_the_published_training_recipe():
    one = load_config(str(PROJECT / "train_configs/minigpt4_stage1_pretrain.yaml"), mode="show")
    run, model = one.run, one.model
    assert (run.max_epoch, run.iters_per_epoch, run.batch_size_train, run.warmup_steps) == (4, 5000, 64, 5000)
    assert (run.init_lr, run.min_lr, run.warmup_lr, run.weight_decay) == (1e-4, 8e-5, 1e-6, 0.05)
    assert (model.max_txt_len, model.end_sym, model.prompt_path) == (32, "\n", None)
    assert {n: d.sample_ratio for n, d in one.datasets.items()} == {"laion": 115, "cc_sbu": 14}
    two = load_config(str(PROJECT / "train_configs/minigpt4_stage2_finetune.yaml"), mode="show")
    run, model = two.run, two.model
    assert (run.max_epoch, run.iters_per_epoch, run.batch_size_train, run.warmup_steps) == (5, 200, 12, 200)
    assert (run.init_lr, run.min_lr, run.warmup_lr, run.weight_decay) == (3e-5, 1e-5, 1e-6, 0.05)
    assert (model.max_txt_len, model.end_sym) == (160, "###")
    assert model.prompt_template == "###Human: {} ###Assistant: "


def sections(cls=Config, prefix=""):
    for f in fields(cls):
        if f.metadata:
            yield f"{prefix}{f.name}", f
            kind = DatasetConfig if f.name == "datasets" else f.type
            for inner in (kind, *getattr(kind, "__args__", ())):
                if is_dataclass(inner):
                    yield from sections(inner, f"{prefix}{f.name}.")


def test_every_key_has_a_meaning():
    documented = dict(sections())
    assert len(documented) > 80
    assert [name for name, f in documented.items() if len(f.metadata["doc"]) < 5] == []
    bare = [f.name for f in fields(Config) if not f.metadata]
    assert bare == ["path", "origin"]  # not keys: filled in by load_config


def test_the_models_defaults_file_agrees_with_the_schema():
    """configs/models/minigpt4.yaml repeats defaults for people to read; it may differ only where a path is wanted."""
    data = yaml.safe_load((PROJECT / "minigpt4/configs/models/minigpt4.yaml").read_text())["model"]
    default = vars(ModelConfig())
    differs = {k for k, v in data.items() if v != default[k]}
    assert differs == {"vit_ckpt", "q_former_model"}
    assert all("/path/to" in data[k] for k in differs)


def test_what_a_command_makes_is_named_with_it(problems, good):
    good["model"]["vit_ckpt"] = "weights/none.safetensors"
    good["run"]["device"] = "cuda:x"
    assert problems(good) == [
        "run.device: 'cuda:x' should be auto, cpu, cuda or cuda:N",
        "model.vit_ckpt: 'weights/none.safetensors': no such file or folder; `minigpt4 weights` makes it",
    ]


def test_everything_is_said_at_once():
    """An unknown key does not hide the paths that are missing."""
    with pytest.raises(ConfigError) as error:
        load_config(str(PROJECT / "eval_configs/minigpt4_eval.yaml"), ["model.llama_modle=x"], mode="chat")
    said = str(error.value)
    assert "5 problems" in said and "did you mean 'llama_model'" in said and "model.ckpt: '/path/to" in said


def test_describe_says_where_each_value_came_from(load, good):
    config = load(good, ["run.seed=7"])
    rows = {name: (value, source) for name, value, source, _ in describe_config(config)}
    assert rows["run.seed"] == (7, "--options")
    assert rows["run.init_lr"] == (1e-3, config.path)
    assert rows["run.keep_last"] == (3, "default")
    assert rows["model.freeze_vit"] == (True, "minigpt4/configs/models/minigpt4.yaml")
    assert rows["model.qformer_kwargs.hidden_size"] == (768, "default")
    assert rows["datasets.laion.vis_processor.train.name"] == ("blip2_image_train", config.path)
    assert "path" not in rows and "origin" not in rows
