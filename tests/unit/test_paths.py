"""Paths with brackets and braces in their names, and text files as editors write them."""

import json
from pathlib import Path

import pytest
from made import picture

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.paths import expand_shards, read_text
from minigpt4.datasets.image_text import read_filter_cap, read_photos
from minigpt4.evaluation.data import read_records
from minigpt4.evaluation.objects import read_vocabulary
from minigpt4.models.llm_checks import read_json
from minigpt4.models.prompting import read_prompts

# -- patterns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "laid, pattern, found",
    [
        (["a [v2]/0.tar"], "a [v2]", ["a [v2]"]),
        (["a [v2]/0.tar", "a [v2]/1.tar"], "a [v2]/{0..1}.tar", ["a [v2]/0.tar", "a [v2]/1.tar"]),
        (["a/0.tar", "b/1.tar"], "{a,b}/*.tar", ["a/0.tar", "b/1.tar"]),
        (["what?.tar", "whats.tar"], "what?.tar", ["what?.tar"]),
        (["0[1].tar"], ["0[1].tar", "gone[1].tar"], ["0[1].tar"]),
        ([], "{0..1}.tar", ["0.tar", "1.tar"]),  # missing ones are named
        (["{0.tar"], "{0.tar", ["{0.tar"]),
    ],
)
def test_what_exists_is_meant_as_it_is_written(laid, pattern, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in laid:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert expand_shards(pattern) == found
    absolute = [str(tmp_path / p) for p in ([pattern] if isinstance(pattern, str) else pattern)]
    assert expand_shards(absolute) == [str(tmp_path / name) for name in found]


# -- texts ----------------------------------------------------------------------------------------------------------

PROMPT = "<Img><ImageHere></Img> Où est-ce ?"


def of_config(file: Path):
    return load_config(str(file), mode="show").model.end_sym


def of_filter_cap(file: Path):
    return read_filter_cap(str(file.parent))[0][1]


def of_questions(file: Path):
    return read_records([str(file)], None, None, None, ["questions"])[0].truth["answers"]


def of_coco(file: Path):
    return read_records([str(file)], str(file.parent), None, None, ["coco captions"])[0].truth["captions"]


READERS = {
    "config.yaml": ("model: {end_sym: é}", of_config, "é"),
    "filter_cap.json": ({"annotations": [{"image_id": 1, "caption": "é"}]}, of_filter_cap, "é"),
    "photos.jsonl": ({"image": "a.png", "caption": "é"}, lambda file: read_photos(str(file))[0][1], ["é"]),
    "prompts.txt": (PROMPT, lambda file: read_prompts(str(file), "{}"), [PROMPT]),
    "synonyms.txt": ("café, bistro", read_vocabulary, (("café", ("café", "bistro")),)),
    "questions.jsonl": ({"image": "a.png", "question": "é?", "answer": "é"}, of_questions, ["é"]),
    "captions.json": (
        {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "é"}]}, of_coco, ["é"]
    ),
    "llm.json": ({"name": "é"}, read_json, {"name": "é"}),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_is_no_part_of_the_text(name, tmp_path):
    content, read, expected = READERS[name]
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / name).write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig")
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize("name", [name for name in READERS if name != "llm.json"])
def test_another_encoding_is_named_with_its_line_and_byte(name, tmp_path):
    content, read, _ = READERS[name]
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (tmp_path / name).write_bytes(("\n" + text).encode("latin-1"))
    byte, letter = (text.index("é") + 1, "e9") if "é" in text else (text.index("ù") + 1, "f9")
    with pytest.raises((ConfigError, DataError)) as error:
        read(tmp_path / name)
    assert f"{tmp_path / name}:2: byte {byte} of the line is 0x{letter}, which is not UTF-8" in str(error.value)


def test_utf_16_is_not_read_as_something_else(tmp_path):
    (tmp_path / "x.txt").write_text("a dog", encoding="utf-16")
    with pytest.raises(DataError, match=r"x\.txt:1: byte 1 of the line is 0xff, which is not UTF-8; save the file as"):
        read_text(tmp_path / "x.txt")


def test_a_line_separator_within_a_caption_ends_no_line(tmp_path):
    line = json.dumps({"image": "a.png", "caption": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "photos.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert [captions for _, captions in read_photos(str(tmp_path / "photos.jsonl"))] == [["one\u2028two"]] * 2
