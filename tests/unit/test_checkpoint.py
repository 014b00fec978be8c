"""Weight files: strict loading, atomic writing, and finding the newest whole checkpoint."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from made import Evil
from safetensors.torch import save_file

from minigpt4.common.checkpoint import (
    atomic_save,
    find_latest,
    load_exact,
    prune_checkpoints,
    read_resume,
    read_state,
    resume_path,
    save_checkpoint,
    save_weights,
)
from minigpt4.common.errors import CheckpointError

# -- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "module"])
def test_a_state_dict_is_unwrapped(tmp_path, wrapper):
    state = {"w": torch.arange(3.0)}
    torch.save({wrapper: state, "epoch": 1} if wrapper else state, tmp_path / "w.pth")
    read = read_state(tmp_path / "w.pth")
    assert list(read) == ["w"]
    assert torch.equal(read["w"], state["w"])


def test_safetensors_and_old_pickles(tmp_path):
    state = {"w": torch.arange(4.0).reshape(2, 2).T}  # not contiguous
    save_weights(state, tmp_path / "w.safetensors")
    (tmp_path / "as_usual").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "as_usual").stat().st_mode, "others read it too"
    assert torch.equal(read_state(tmp_path / "w.safetensors")["w"], state["w"])
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state(str(tmp_path / "old.pth"))["w"], state["w"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 99\n", "git-lfs pointer.*git lfs pull"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"<html lang=en>", "web page"),
        (b"", "an empty file; download it again"),
        (b"\x80\x02}q\x00(X\x01", "damaged|cut off"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(tmp_path, content, words, suffix):
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"(?s){file} is .*({words})"):
        read_state(file)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pth is not there \(No such file or directory\); write the path"):
        read_state(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match=r"is a folder, not a file; write the path of the weight file in it"):
        read_state(tmp_path)


def test_a_file_of_other_things(tmp_path):
    torch.save({"model": {"note": "text"}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state(tmp_path / "w.pth")


def test_a_pickle_does_not_run(tmp_path):
    trace = tmp_path / "it_ran"
    pickle.loads(pickle.dumps(Evil(trace), 2))
    assert trace.exists()  # it would
    trace.unlink()
    torch.save({"model": {"w": torch.ones(1)}, "x": Evil(trace)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(trace), 2))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="is a pickle that would run code, which is never done here"):
            read_state(tmp_path / name)
    assert not trace.exists()


# -- loading ------------------------------------------------------------------------------------------------------


def test_load_exact_names_what_does_not_fit_and_copies_nothing():
    targets = {"a": torch.zeros(2), "b": torch.zeros(2, 3), "c": torch.zeros(1)}
    state = {"a": torch.ones(2), "b": torch.ones(3, 2), "d": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        load_exact(targets, state, "w.pth")
    assert str(caught.value).splitlines() == [
        "w.pth does not fit this model",
        "  missing: c",
        "  unexpected: d",
        "  other shape: b is (3, 2) in the file and (2, 3) in the model",
    ]
    assert all(not t.any() for t in targets.values())


def test_load_exact_copies_in_the_models_dtype():
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    load_exact({"a": parameter}, {"a": torch.tensor([1.0, 2.0])}, "w.pth")
    assert parameter.tolist() == [1, 2]
    assert parameter.dtype == torch.bfloat16 and parameter.grad is None


def test_harmless_extras_and_required_names():
    extras = {
        "Qformer.bert.embeddings.position_ids": torch.arange(4),
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    target = {"a": torch.zeros(1), "b": torch.zeros(1)}
    load_exact(target, {"a": torch.ones(1), **extras}, "w.pth", required={"a"})
    assert (target["a"].item(), target["b"].item()) == (1, 0)
    with pytest.raises(CheckpointError, match=r"missing: b$"):
        load_exact(target, {"a": torch.ones(1), **extras}, "w.pth")
    with pytest.raises(CheckpointError, match=r"unexpected: position_idsx$"):
        load_exact(target, {"a": torch.ones(1), "b": torch.ones(1), "position_idsx": torch.ones(1)}, "w.pth")


def test_a_long_list_of_names_is_cut():
    with pytest.raises(CheckpointError, match="missing: n0, n1, n2, n3, n4, n5 and 3 more"):
        load_exact({f"n{i}": torch.zeros(1) for i in range(9)}, {}, "w.pth")


# -- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_failed_write_leaves_the_old_file_whole(tmp_path, error):
    file = tmp_path / "w.pth"
    atomic_save({"w": torch.ones(3)}, file)
    before = file.read_bytes()

    def half(data, path):
        Path(path).write_bytes(b"half of it")
        raise error

    with pytest.raises(CheckpointError, match=r"w\.pth: cannot be written: .*; earlier checkpoints are untouched"):
        atomic_save({"w": torch.zeros(3)}, file, half)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupt_while_writing_leaves_the_old_file_whole(tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(3)}, file)

    def interrupted(data, path):
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_save({}, file, interrupted)
    assert torch.equal(read_state(file)["w"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [file]


# -- checkpoints of a run -----------------------------------------------------------------------------------------


def write(folder: Path, name: str, step: int) -> Path:
    """A checkpoint whose weights are its step. Its time runs backwards: a copied folder's times mean nothing."""
    checkpoint = folder / name
    facts = {"epoch": 0, "step": step, "config": {"run": {"seed": 1}}}
    save_checkpoint(checkpoint, {"llama_proj.weight": torch.full((64,), float(step))}, facts, {"optimizer": {"a": [1]}})
    for file in (checkpoint, resume_path(checkpoint)):
        os.utime(file, (1e9 - step, 1e9 - step))
    return checkpoint


def test_a_checkpoint_is_the_originals_and_comes_back(tmp_path):
    checkpoint = write(tmp_path, "checkpoint_0.pth", 5)
    data = torch.load(checkpoint, weights_only=True)
    assert set(data) == {"model", "epoch", "step", "config"}
    assert list(data["model"]) == ["llama_proj.weight"]
    weights, resume = read_resume(checkpoint)
    assert weights["llama_proj.weight"][0] == 5
    assert resume == {"optimizer": {"a": [1]}, "step": 5}


def test_the_halves_of_a_checkpoint_belong_together(tmp_path):
    one, two = write(tmp_path, "checkpoint_step_1.pth", 1), write(tmp_path, "checkpoint_step_2.pth", 2)
    resume_path(one).replace(resume_path(two))
    with pytest.raises(CheckpointError, match=r"is of step 1, but checkpoint_step_2\.pth of step 2"):
        read_resume(two)
    with pytest.raises(CheckpointError, match=r"checkpoint_step_1\.resume\.pt: missing or damaged"):
        read_resume(one)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """One byte of the tensor's own data: torch.load alone would not notice."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)  # the local header's own lengths
    content[info.header_offset + 30 + name + extra + 40] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_the_newest_whole_checkpoint_is_found(tmp_path, damage):
    assert find_latest(tmp_path) == (None, [])
    first, last = write(tmp_path, "checkpoint_0.pth", 10), write(tmp_path, "checkpoint_step_15.pth", 15)
    assert find_latest(tmp_path) == (last, [])
    damage(last)
    found, complaints = find_latest(tmp_path)
    assert found == first
    assert len(complaints) == 1 and "checkpoint_step_15" in complaints[0]
    resume_path(first).unlink()
    found, complaints = find_latest(tmp_path)
    assert found is None and len(complaints) == 2


def test_a_flipped_byte_anywhere_is_damage_or_nothing(tmp_path):
    """Whatever byte of the file is hit: a CheckpointError or the same weights; never another exception."""
    checkpoint = write(tmp_path, "checkpoint_0.pth", 3)
    whole = checkpoint.read_bytes()
    found = 0
    for at in range(0, len(whole), 7):
        checkpoint.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            weights, _ = read_resume(checkpoint)
        except CheckpointError:
            found += 1
        else:
            assert torch.equal(weights["llama_proj.weight"], torch.full((64,), 3.0)), at
    assert found > 40


def test_pruning_keeps_epochs_and_the_newest_within(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, f"checkpoint_step_{step}.pth", step)
    write(tmp_path, "checkpoint_0.pth", 4)
    write(tmp_path, "checkpoint_step_5.pth", 5)
    (tmp_path / ".checkpoint_1.pth.77.tmp").touch()
    prune_checkpoints(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint_0.pth", "checkpoint_0.resume.pt", "checkpoint_step_3.pth", "checkpoint_step_3.resume.pt",
        "checkpoint_step_5.pth", "checkpoint_step_5.resume.pt",
    ]  # fmt: skip
    for epoch in range(1, 5):
        write(tmp_path, f"checkpoint_{epoch}.pth", 10 + epoch)
    prune_checkpoints(tmp_path, keep_last=2)
    assert len(list(tmp_path.glob("checkpoint_?.pth"))) == 5  # every epoch stays
    assert sorted(p.name for p in tmp_path.glob("*.resume.pt")) == [f"checkpoint_{n}.resume.pt" for n in (2, 3, 4)]
    assert find_latest(tmp_path)[0].name == "checkpoint_4.pth"
