"""`minigpt4 data check`: the faults of shards, folders and lists, by command."""

import json
import os
import signal

import pytest
import yaml
from made import good, picture, write_shard

from minigpt4.checkup import data as data_check
from minigpt4.cli import main
from minigpt4.processors.image_processors import NOT_AN_IMAGE


@pytest.fixture
def laid(tmp_path, monkeypatch):
    """Three shards: whole, with faults, and cut."""
    monkeypatch.chdir(tmp_path)
    write_shard("0.tar", [good("one two three", 1), good("four", 2), good("five six", 3)])
    write_shard("1.tar", [good("x"), {"png": b"x", "json": b'{"caption": "x"}'}, {"png": picture()}])
    whole = write_shard("2.tar", [good("a"), good("b")])
    os.truncate(whole, 5000)
    return tmp_path


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_whole_shards_are_ready(laid, capsys):
    assert main(["data", "check", "0.tar", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "shards: 3 samples, 0 bad\n" in out
    assert "ready for training (at most 5% may be bad)" in out


def test_faults_are_told_by_part_and_by_kind(laid, capsys):
    assert main(["data", "check", "{0..2}.tar", "--jobs", "2", "--jsonl", "report.jsonl"]) == 1
    out, err = capsys.readouterr()
    assert "1.tar: 2 of 3 samples bad: 1 BrokenImage, 1 NoCaption\n" in out
    assert "2.tar: 1 of 2 samples bad: 1 DamagedShard\n" in out
    assert "0.tar" not in out
    assert f"  BrokenImage: 1\n    1.tar:00001: its png: {NOT_AN_IMAGE}\n" in out
    assert err == "error: shards: 3 of 8 samples are bad (37.5%; at most 5.0% may be)\n"
    first, second, third, total = lines(laid / "report.jsonl")
    assert [r["shard"] for r in (first, second, third, total)] == ["0.tar", "1.tar", "2.tar", None]
    assert (first["samples"], first["bad"], first["faults"]) == (3, 0, {})
    assert second["faults"] == {"BrokenImage": 1, "NoCaption": 1}
    assert second["examples"]["BrokenImage"] == [f"1.tar:00001: its png: {NOT_AN_IMAGE}"]
    assert (total["samples"], total["bad"]) == (8, 3)
    assert main(["data", "check", "{0..2}.tar", "--jobs", "1", "--max-bad-share", "0.4"]) == 0


def test_what_would_stop_a_run_at_once(laid, capsys):
    write_shard("bad.tar", [{"png": b"x", "json": b'{"caption": "x"}'}])
    assert main(["data", "check", "bad.tar", "--jobs", "1", "--max-bad-share", "1"]) == 1
    assert "error: shards: 1 of 1 samples are bad (100.0%; at most 100.0% may be)\n" in capsys.readouterr().err
    for arguments, said in (
        ([], "data check: write either shards, folders and files to check, or --cfg-path X"),
        (["0.tar", "--cfg-path", "x.yaml"], "data check: write either"),
        (["0.tar", "--jobs", "0"], "--jobs: 0 should be at least 1"),
        (["0.tar", "gone.tar"], "gone.tar: 1 of 1 files are missing, the first gone.tar"),
        (["gone*.tar"], "gone*.tar: no such file or folder"),
        (["{0..}{.tar"], "{0..}{.tar: not a pattern like {00000..01255}.tar"),
        (["."], ". has no filter_cap.json"),
        (
            ["0.tar", "--jobs", "1", "--jsonl", "no/such/folder.jsonl"],
            "--jsonl no/such/folder.jsonl: cannot be written",
        ),
    ):
        assert main(["data", "check", *arguments]) == 1, arguments
        assert said in capsys.readouterr().err


def test_folders_and_lists_of_photos(laid, capsys, monkeypatch):
    monkeypatch.setattr(data_check, "CHUNK", 2)
    (laid / "align" / "image").mkdir(parents=True)
    for i in range(3):
        (laid / "align" / "image" / f"{i}.jpg").write_bytes(picture(i) if i else b"x")
    notes = [{"image_id": i, "caption": "two words"} for i in range(4)]  # 3.jpg is missing
    (laid / "align" / "filter_cap.json").write_text(json.dumps({"annotations": notes}))
    (laid / "photos").mkdir()
    (laid / "photos" / "a.png").write_bytes(picture())
    (laid / "list.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["one", "two words", " "]}) + "\n")
    assert main(["data", "check", "align", "list.jsonl", "--jobs", "1"]) == 1
    out, err = capsys.readouterr()
    assert "align: 4 samples, 2 bad\n" in out
    assert "align/image 0-1: 1 of 2 samples bad: 1 BrokenImage\n" in out
    assert "align/image 2-3: 1 of 2 samples bad: 1 MissingFile\n" in out
    assert "align: 2 of 4 samples are bad (50.0%; " in err
    assert "list.jsonl: 1 of 1 samples are bad" in err  # one of its captions is empty


def test_every_dataset_of_a_config_with_its_own_processors(laid, capsys):
    processors = {
        "vis_processor": {"train": {"name": "blip2_image_train", "image_size": 24}},
        "text_processor": {"train": {"name": "blip_caption"}},
    }
    config = {
        "model": {"image_size": 24},
        "datasets": {
            "laion": {"build_info": {"storage": "0.tar"}, **processors},
            "cc_sbu": {"build_info": {"storage": "1.tar"}, "valid_info": {"storage": "0.tar"}, **processors},
        },
        "run": {"max_bad_share": 0.7},
    }
    (laid / "x.yaml").write_text(yaml.safe_dump(config))
    assert main(["data", "check", "--cfg-path", "x.yaml", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "laion: 3 samples, 0 bad" in out and "cc_sbu: 3 samples, 2 bad" in out
    assert "cc_sbu (validation): 3 samples, 0 bad" in out and "(at most 70% may be bad)" in out
    assert main(["data", "check", "--cfg-path", "x.yaml", "--jobs", "1", "--options", "run.max_bad_share=0.5"]) == 1
    assert "cc_sbu: 2 of 3 samples are bad (66.7%; at most 50.0% may be)" in capsys.readouterr().err


def test_a_killed_process_is_told(laid, capsys, monkeypatch):
    monkeypatch.setattr(data_check, "read_part", _die)
    assert main(["data", "check", "0.tar", "--jobs", "1"]) == 1
    assert "one of its processes was killed, perhaps for lack of memory; try --jobs 1" in capsys.readouterr().err


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
