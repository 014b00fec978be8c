"""What SECURITY.md says of the code, checked on the code."""

import ast
import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from made import Evil

from minigpt4.common.checkpoint import atomic_save, find_latest, read_resume, resume_path, save_checkpoint
from minigpt4.common.errors import CheckpointError
from minigpt4.conversation.chat import ImageError, read_image

PROJECT = Path(__file__).parents[2]
FILES = [*sorted((PROJECT / "minigpt4").rglob("*.py")), PROJECT / "train.py", PROJECT / "demo.py"]
# Each runs code or a shell line that a file could bring along.
FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load",
    "yaml.unsafe_load", "marshal.loads", "shelve.open", "joblib.load", "subprocess.getoutput",
}  # fmt: skip
OWN_CODE = {"minigpt4/convert/hf/export_hf.py"}  # reads a folder that the export wrote itself just before
SHELL = {("minigpt4/datasets/shard_files.py", "super().__init__")}  # `pipe:`, the user's own line of the config


def calls(tree: ast.AST):
    """(dotted name, call) of every call, e.g. ("torch.load", ...)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def faults_of(source: str, file: str) -> list[str]:
    found = []
    for name, call in calls(ast.parse(source)):
        keys = {k.arg: ast.unparse(k.value) for k in call.keywords}
        spread = None in keys  # **options
        if name in FORBIDDEN or (name == "__import__"):
            found.append(f"{file}:{call.lineno}: {name}")
        if name in ("torch.load", "np.load", "numpy.load"):
            key, wanted = ("weights_only", "True") if name == "torch.load" else ("allow_pickle", "False")
            safe = keys.get(key, "False" if name != "torch.load" else None) == wanted
            if not safe and not (spread and f'"{key}": {wanted}' in source):
                found.append(f"{file}:{call.lineno}: {name} without {key}={wanted}")
        if keys.get("shell", "False") != "False" and (file, name) not in SHELL:
            found.append(f"{file}:{call.lineno}: {name} with a shell")
        if keys.get("trust_remote_code", "False") != "False" and file not in OWN_CODE:
            found.append(f"{file}:{call.lineno}: trust_remote_code")
    return found


def test_no_code_of_a_file_ever_runs():
    found = [f for path in FILES for f in faults_of(path.read_text(), str(path.relative_to(PROJECT)))]
    assert not found, found


def test_the_search_finds_what_it_looks_for():
    bad = "eval(x)\ntorch.load(x)\ntorch.load(x, weights_only=False)\nsubprocess.run(x, shell=True)\nyaml.load(x)\n"
    assert len(faults_of(bad, "x.py")) == 5
    assert not faults_of("torch.load(x, weights_only=True)\nmodel.eval()\nsubprocess.run([x])\n", "x.py")


def test_the_page_listens_on_this_machine_only():
    import inspect

    from demo import parse_args
    from minigpt4.serve.app import launch

    args = parse_args([])
    assert (args.host, args.share) == ("127.0.0.1", False)
    defaults = {k: p.default for k, p in inspect.signature(launch).parameters.items()}
    assert (defaults["host"], defaults["share"]) == ("127.0.0.1", False)
    for path in FILES:
        for name, call in calls(ast.parse(path.read_text())):
            opened = {k.arg for k in call.keywords} & {"allowed_paths"}
            assert not opened, f"{path}: {name} lets the page serve other files"


def test_a_pickle_in_a_resume_file_does_not_run(tmp_path):
    trace, checkpoint = tmp_path / "it_ran", tmp_path / "checkpoint_0.pth"
    save_checkpoint(checkpoint, {"w": torch.ones(1)}, {"epoch": 0, "step": 1}, {})
    torch.save({"step": 1, "optimizer": Evil(trace)}, resume_path(checkpoint))
    with pytest.raises(CheckpointError, match=r"resume\.pt"):
        read_resume(checkpoint)
    assert find_latest(tmp_path)[0] is None
    assert not trace.exists()


def test_a_pickle_in_the_llms_folder_does_not_run(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    trace = tmp_path / "it_ran"
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    for content in (pickle.dumps(Evil(trace), 2), None):
        if content:
            (tmp_path / "pytorch_model.bin").write_bytes(content)
        else:
            torch.save({"x": Evil(trace)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(Exception, match=r"(?i)weights_only|unpickl|pickle|weights only|unsupported|load"):
            LlamaForCausalLM.from_pretrained(tmp_path)
    assert not trace.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """The file system itself says so: what is written goes to /dev/full."""
    checkpoint = tmp_path / "checkpoint_0.pth"
    save_checkpoint(checkpoint, {"w": torch.ones(9)}, {"epoch": 0, "step": 1}, {})
    newer = tmp_path / "checkpoint_1.pth"
    (tmp_path / f".{newer.name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(
        CheckpointError, match=r"checkpoint_1\.pth: cannot be written: .*earlier checkpoints are untouched"
    ):
        save_checkpoint(newer, {"w": torch.zeros(100_000)}, {"epoch": 1, "step": 2}, {})
    assert find_latest(tmp_path)[0] == checkpoint


def test_a_read_only_folder_is_told_in_one_message(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    atomic_save({"w": torch.ones(1)}, tmp_path / "checkpoint_0.pth")
    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(CheckpointError, match=r"checkpoint_0\.pth: cannot be written: .*Read-only file system"):
        atomic_save({"w": torch.zeros(1)}, tmp_path / "checkpoint_0.pth")
    assert torch.load(tmp_path / "checkpoint_0.pth", weights_only=True)["w"].item() == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_an_uploaded_bomb_is_refused(tmp_path):
    from PIL import Image

    Image.new("1", (30_000, 3000)).save(tmp_path / "bomb.png")  # 90 million pixels in a few kilobytes
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(ImageError, match="too large: 30000 x 3000 pixels; at most 89,478,485 pixels are decoded"):
        read_image(tmp_path / "bomb.png")


MARKUP = "<script>alert(1)</script> ![x](http://example.invalid/a.png) <img src=http://example.invalid/b.png>"


def test_the_page_takes_no_text_as_markup(tiny_model, monkeypatch):
    from minigpt4.conversation.chat import Chat
    from minigpt4.serve import app as serve_app

    shown = []
    monkeypatch.setattr(serve_app.gr, "Warning", shown.append)
    app = serve_app.build_app(Chat(tiny_model, None), title=MARKUP, subtitle=MARKUP)
    shown += [app.get_config_file()["components"][0]["props"]["value"].replace("<h1>", "").replace("</p>", "")]
    serve_app.warn(ImageError(MARKUP))
    shown.append(serve_app.verbatim(MARKUP)["text"])
    assert len(shown) == 3
    for text in shown:
        assert "<script" not in text and "<img" not in text and "&lt;script&gt;" in text
    chatbot = next(c for c in app.get_config_file()["components"] if c["type"] == "chatbot")
    assert not chatbot["props"]["render_markdown"], "![x](http://...) would load an image"


def test_tensorboard_shows_an_answer_as_it_is(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    from minigpt4.common.logger import MetricLog

    log = MetricLog(tmp_path)
    log.write_samples(1, [{"image": "a.jpg", "answer": f"{MARKUP}\n\n{MARKUP}\n# a*b*c"}])
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Tensors("a.jpg/text_summary")
    html = markdown_to_safe_html(event.tensor_proto.string_val[0])
    assert "<img" not in html and "<h1" not in html and html.count("![x](http://example.invalid/a.png)") == 2
    assert "a*b*c" in html
