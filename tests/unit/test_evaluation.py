"""`minigpt4 eval` from its command line: answers kept, shared and compared, by a chat that answers from a table."""

import argparse
import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import openai_server, picture
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.chat import Chat, read_image
from minigpt4.evaluation import answering, run, scoring
from minigpt4.evaluation.answering import rank_choices
from minigpt4.evaluation.judge import Judge, data_uri, yes_or_no
from minigpt4.evaluation.statistics import mean, share, summarize
from minigpt4.processors.image_processors import Blip2ImageEval


class FakeChat:
    """Answers by the file's name; notes what it was asked."""

    def __init__(self, config, answers):
        self.checkpoint, self.table, self.asked = config.model.ckpt, answers, []
        self.model = SimpleNamespace(token_ids=lambda text: text.split())

    def answer_batch(self, images, questions, **options):
        for image in images:
            read_image(image)  # raises as the real one does
        self.asked.append([image.name for image in images])
        said = self.table.get(self.checkpoint, self.table)
        return [said[image.name] for image in images]


CAPTIONS = {
    "0.png": ["A black dog runs.", "A dog on grass.", "The dog is running in grass."],
    "1.png": ["A man rides a bike.", "A man on a bicycle.", "A cyclist."],
    "2.png": ["Two cats sleep.", "Cats on a sofa.", "Two kittens asleep on a couch."],
}
SAID = {"0.png": "A dog runs on grass.", "1.png": "A man with a horse.", "2.png": "A dog on a couch."}


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """evaluate("caption", "--limit", 2, said={...}) -> (results, chats that were built)."""
    (tmp_path / "photos").mkdir()
    lines = []
    for name, captions in CAPTIONS.items():
        (tmp_path / "photos" / name).write_bytes(picture(10 * int(name[0])))
        lines.append(json.dumps({"image": name, "captions": captions, "split": "val"}))
    (tmp_path / "photos.jsonl").write_text("\n".join(lines))
    for name in ("one.pth", "two.pth", "frozen.pth"):
        (tmp_path / name).write_bytes(name.encode())
    frozen = str(tmp_path / "frozen.pth")
    model = {"llama_model": str(tmp_path), "ckpt": str(tmp_path / "one.pth")}
    model |= {"vit_ckpt": frozen, "q_former_model": frozen}
    (tmp_path / "c.yaml").write_text(json.dumps({"model": model}))

    def call(suite, *words, said=SAID, data=None):
        chats = []

        def build(config, device):
            chats.append(FakeChat(config, said))
            return chats[-1]

        monkeypatch.setattr(run, "chat_for", build)
        parser = argparse.ArgumentParser()
        run.add_arguments(parser)
        argv = ["--cfg-path", str(tmp_path / "c.yaml"), "--suite", suite, "--out", str(tmp_path / "out"), "--data"]
        argv += [str(d) for d in data or [tmp_path / "photos.jsonl"]]
        assert run.run(parser.parse_args([*argv, *map(str, words)])) == 0
        made = sorted((tmp_path / "out" / suite).glob("*/results.json"), key=lambda file: file.stat().st_mtime_ns)
        call.reports = [file.with_name("report.html") for file in made]
        return (json.loads(made[-1].read_text()) if made else None), chats

    call.folder = tmp_path
    return call


def values(results, stage="after"):
    return {name: score["value"] for name, score in results["scores"][stage].items()}


def test_coverage_counts_the_main_things(evaluate, capsys):
    results, _ = evaluate("coverage")
    # main: dog and grass; man and bicycle; cat and couch. Named: dog, grass; man; couch
    got = values(results)
    assert got["picture_named"] == 1 and got["foremost_named"] == pytest.approx(2 / 3)  # dog; man or bicycle; not cat
    assert got["main_named"] == pytest.approx(4 / 6)
    assert got["wrong"] == pytest.approx(2 / 3)  # a horse, a dog
    assert got["captions_covered"] == pytest.approx((3 + 1 + 0) / 9)
    assert got["covered_each"] == pytest.approx(4 / 3)
    shown = capsys.readouterr().out
    assert "main things named" in shown and "66.7%" in shown
    page = evaluate.reports[-1].read_text()
    assert page.count("<article") == 3 and '<mark class="wrong">horse</mark>' in page
    assert page.count("data:image/jpeg") == 3 and "http" not in page


def test_answers_are_kept_until_something_they_depend_on_changes(evaluate, monkeypatch):
    monkeypatch.setattr(scoring, "has_java", lambda: False)
    results, chats = evaluate("coverage", "--batch", 2)
    assert [len(batch) for batch in chats[0].asked] == [2, 1]
    again, chats = evaluate("coverage")
    assert chats == [] and again["scores"] == results["scores"]
    _, chats = evaluate("caption")  # the same question
    assert chats == []
    _, chats = evaluate("coverage", "--max-new-tokens", 9)
    assert len(chats) == 1
    _, chats = evaluate("coverage", "--prompt", "What?")
    assert len(chats) == 1
    (evaluate.folder / "one.pth").write_bytes(b"trained on")
    _, chats = evaluate("coverage")
    assert len(chats) == 1
    (evaluate.folder / "photos/0.png").write_bytes(picture(200) + b" ")
    _, chats = evaluate("coverage")
    assert chats[0].asked == [["0.png"]]


def test_a_killed_evaluation_goes_on(evaluate):
    evaluate("coverage")
    (file,) = (evaluate.folder / "out/answers").glob("*.jsonl")
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1][:20])  # killed while it wrote
    results, chats = evaluate("coverage")
    assert chats[0].asked == [["1.png", "2.png"]]
    assert [i["after"]["answer"] for i in results["items"]] == list(SAID.values())


def test_processes_share_the_answers(evaluate, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    nothing, chats = evaluate("coverage")
    assert nothing is None and chats[0].asked == [["1.png"]]
    monkeypatch.setenv("RANK", "0")
    results, chats = evaluate("coverage")
    assert chats[0].asked == [["0.png", "2.png"]] and results["answers"] == 3 and results["processes"] == 2


def test_the_first_process_waits_for_the_others(evaluate, monkeypatch):
    evaluate("coverage")
    (file,) = (evaluate.folder / "out/answers").glob("*.0.jsonl")
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[2])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        answering.time, "sleep", lambda s: file.with_name(file.name.replace(".0.", ".1.")).write_text(lines[1])
    )
    results, chats = evaluate("coverage")
    assert chats == [] and results["answers"] == 3


def test_before_and_after(evaluate):
    two = str(evaluate.folder / "two.pth")
    worse = {**SAID, "0.png": "A tree."}
    results, _ = evaluate("coverage", "--before", two, said={two: worse, **SAID})
    assert values(results, "before")["main_named"] == pytest.approx(2 / 6)
    difference = results["difference"]["main_named"]
    assert difference["value"] == pytest.approx(2 / 6) and difference["low"] == 0
    page = evaluate.reports[-1].read_text()
    assert "A tree." in page.replace('<mark class="wrong">tree</mark>', "tree") and "difference" in page


def test_failure_and_abilities(evaluate):
    said = {**SAID, "1.png": "no no no no no no no no.", "2.png": "and so###"}
    results, _ = evaluate("failure", said=said)
    got = values(results)
    assert got["failed"] == pytest.approx(2 / 3) and got["repeats"] == got["leak"] == pytest.approx(1 / 3)
    results, _ = evaluate("abilities", data=[evaluate.folder / "photos"])
    assert list(results["questions"]) == ["meme", "recipe", "advertisement", "poem"] and results["answers"] == 12


def test_labels_are_named_and_ranked(evaluate, monkeypatch):
    names = {"0.png": "a photo of a dog", "1.png": "a photo of a pigeon", "2.png": "a photo of an emu"}
    lines = [json.dumps({"image": name, "captions": [caption]}) for name, caption in names.items()]
    file = evaluate.folder / "labels.jsonl"
    file.write_text("\n".join(lines))
    ranked = []

    def rank(chat, image, question, choices):
        ranked.append(choices)
        return {"scores": [-1, -3, -2]}

    monkeypatch.setattr(answering, "rank_choices", rank)
    results, _ = evaluate("labels", "--limit", 2, data=[file], said={**SAID, "1.png": "Pigeons.", "2.png": "a dog"})
    assert len(ranked) == 2 and set(ranked[0]) == set(names.values())  # those of all the data
    named = {i["id"]: i["after"]["flags"] for i in results["items"] if i["variant"] == "name"}
    right = {"0.png": ["right"], "1.png": ["right"], "2.png": ["wrong"]}
    got = values(results)
    assert named == {name: right[name] for name in named} and len(named) == 2
    assert got["top1"] == ("0.png" in named) / 2 and got["top5"] == 1
    with pytest.raises(UserError, match="a label each"):
        evaluate("labels")


def test_chair_counts_mentions(evaluate):
    results, _ = evaluate("chair", "--prompt", "What is it?")
    # dog; man and horse (wrong); dog (wrong) and couch
    got = values(results)
    assert got["short.chair_i"] == pytest.approx(2 / 5) and got["short.chair_s"] == pytest.approx(2 / 3)
    assert got["long.recall"] == pytest.approx(3 / 5)
    synonyms = evaluate.folder / "s.txt"
    synonyms.write_text("dog\nhorse, man\n")
    got = values(evaluate("chair", "--synonyms", synonyms, "--prompt", "What is it?")[0])
    assert got["short.chair_i"] == pytest.approx(1 / 4)  # a man is a horse here: only the last dog is wrong


@pytest.mark.parametrize("suite, asked", [("abilities", 4), ("coverage", 1), ("failure", 2)])
def test_a_picture_that_cannot_be_read_is_counted_and_the_rest_goes_on(suite, asked, evaluate, capsys):
    photo = evaluate.folder / "photos/1.png"
    photo.write_bytes(photo.read_bytes()[:-30])
    results, _ = evaluate(suite, "--batch", 2)
    assert results["answers"] == 2 * asked and {i["id"] for i in results["items"]} == {"0.png", "2.png"}
    assert list(results["unreadable"]) == [str(photo)]
    assert "1 of 3 pictures cannot be read and are left out: " in capsys.readouterr().out
    _, chats = evaluate(suite, "--batch", 2)
    assert chats == []  # what cannot be read is known too
    for name in ("0.png", "2.png"):
        (evaluate.folder / "photos" / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"no picture can be read, e\.g\. .*png: (not an image|the image is damaged)"):
        evaluate(suite)


def test_a_broken_picture_has_no_ranked_choices(evaluate, monkeypatch):
    (evaluate.folder / "photos/1.png").write_bytes(b"no picture")
    names = {"0.png": "a photo of a dog", "1.png": "a photo of a pigeon", "2.png": "a photo of an emu"}
    file = evaluate.folder / "labels.jsonl"
    file.write_text("\n".join(json.dumps({"image": name, "caption": text}) for name, text in names.items()))

    def rank(chat, image, question, choices):
        read_image(image)
        return {"scores": [-1, -3, -2]}

    monkeypatch.setattr(answering, "rank_choices", rank)
    results, _ = evaluate("labels", data=[file])
    assert values(results)["top1"] == 0.5 and results["answers"] == 4


def test_each_checkpoint_and_data_has_a_report_of_its_own(evaluate):
    two = str(evaluate.folder / "two.pth")
    evaluate("coverage")
    evaluate("coverage", "--options", f"model.ckpt={two}")
    evaluate("coverage", "--limit", 2)
    evaluate("coverage")  # again: into the same
    assert len(evaluate.reports) == 3
    assert sorted(json.loads(f.with_name("results.json").read_text())["checkpoint"][-7:] for f in evaluate.reports) == [
        "one.pth", "one.pth", "two.pth",
    ]  # fmt: skip
    assert {file.parent.name.rsplit("-", 1)[0] for file in evaluate.reports} == {"one-photos", "two-photos"}


def test_captions_of_a_folder(evaluate, monkeypatch):
    monkeypatch.setattr(scoring, "has_java", lambda: False)
    photos = evaluate.folder / "photos"
    (photos / "captions.jsonl").write_text((evaluate.folder / "photos.jsonl").read_text())
    results, _ = evaluate("caption", data=[photos])
    assert results["answers"] == 3
    (photos / "captions.jsonl").unlink()
    with pytest.raises(UserError) as error:
        evaluate("caption", data=[photos])
    assert "this is folder" in str(error.value) and '{"image": "a.jpg", "captions": ["A dog on grass."]}' in str(
        error.value
    )


def test_questions_of_ones_own(evaluate):
    rows = [
        {"image": "0.png", "question": "What animal?", "answer": "dog"},
        {"image": "1.png", "question": "How many?", "answers": ["1", "one"]},
        {"image": "2.png", "question": "What animal?", "answer": 2},
    ]
    file = evaluate.folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    said = {"0.png": "A dog.", "1.png": "one", "2.png": "a cat"}
    results, _ = evaluate("vqa", data=[file], said=said)
    assert values(results)["open"] == pytest.approx(2 / 3)
    file.write_text(json.dumps({"image": "0.png", "question": "What?"}))
    with pytest.raises(UserError, match=r'questions\.jsonl:1: needs image, question and answer .*; write \{"image"'):
        evaluate("vqa", data=[file])
    with pytest.raises(UserError, match=r'this is photos.*(?s:.*)\{"image": "a.jpg", "question": "What animal'):
        evaluate("vqa")


def test_mistakes_are_said(evaluate):
    for words, message in [
        (("--judge", "http://x"), "--judge-model"),
        (("--limit", "0"), "--limit"),
        (("--split", "train"), "no photos of split train; it has val"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate("coverage", *words)
    (evaluate.folder / "photos/1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images are not there, for example .*1\.png"):
        evaluate("coverage")


# ---------------------------------------------------------------------- intervals


def test_intervals_are_over_pictures():
    rng = np.random.default_rng(3)
    values = rng.normal(size=400)
    got = summarize([mean("m", "", values)], [str(i) for i in range(400)])["m"]
    half = 1.96 * values.std() / 20
    assert got["value"] == pytest.approx(values.mean())
    assert got["high"] - got["value"] == pytest.approx(half, rel=0.12)
    # four equal answers a picture say nothing more than one
    many = summarize([mean("m", "", np.repeat(values, 4))], [str(i // 4) for i in range(1600)])["m"]
    assert many["high"] == pytest.approx(got["high"]) and many["n"] == 400


def test_paired_difference_knows_what_goes_together():
    rng = np.random.default_rng(4)
    base = rng.normal(size=300)
    names = [str(i) for i in range(300)]
    got = summarize([mean("m", "", base + 0.1)], names, [mean("m", "", base)])["m"]
    assert got["value"] == pytest.approx(0.1) and got["high"] - got["low"] < 1e-9
    assert summarize([share("s", "", [(0, 0)])], ["a"])["s"]["value"] == 0


# ---------------------------------------------------------------------- ranking, with a real model


def test_ranking_equals_reading_each_choice_whole(tiny_model):
    chat = Chat(tiny_model, Blip2ImageEval(image_size=56), max_context=512)
    image = torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(1))
    choices = ["a dog", "a", "some red cats on a mat"]
    got = rank_choices(chat, image, "What?", choices, rows=2)
    conv = chat.new_conversation()
    chat.upload_img(image, conv)
    chat.ask("What?", conv)
    context = tiny_model.embed_segments(conv.segments())
    for choice, score in zip(choices, got["scores"], strict=True):
        ids = tiny_model.token_ids(choice + "###")
        whole = torch.cat([context, tiny_model.embed_ids(torch.tensor([ids]))], dim=1)
        with torch.no_grad():
            logits = tiny_model.llama_model(inputs_embeds=whole).logits[0, context.shape[1] - 1 : -1]
        wanted = logits.log_softmax(-1)[range(len(ids)), ids].sum().item()
        assert score == pytest.approx(wanted, abs=2e-3)


# ---------------------------------------------------------------------- judge


@pytest.fixture
def server():
    """An OpenAI-compatible server that says yes to what mentions a dog."""

    def answer(content):
        text = content if isinstance(content, str) else content[0]["text"]
        return "Yes, it does." if "dog" in text.split("A model says", 1)[-1].lower() else "No."

    with openai_server(answer) as served:
        yield served


def test_a_judge_is_asked_once_and_recorded(evaluate, server):
    pytest.importorskip("openai")
    url, requests = server
    words = ("--judge", url, "--judge-model", "fake")
    results, _ = evaluate("coverage", *words)
    # "dog" stands in the captions or the answer of picture 0 and 2, three captions each
    assert values(results)["judge_covered"] == pytest.approx(6 / 9) and values(results)["judge_each"] == pytest.approx(
        2
    )
    assert len(requests) == 9 and requests[0]["model"] == "fake" and requests[0]["temperature"] == 0
    lines = (evaluate.folder / "out/coverage/judged.jsonl").read_text().split("\n")
    first = json.loads(next(line for line in lines if line))
    assert first["raw"] == "Yes, it does." and "A black dog runs." in first["prompt"] and first["model"] == "fake"
    evaluate("coverage", *words)
    assert len(requests) == 9
    results, _ = evaluate("abilities", *words, "--limit", 1)
    assert len(requests) == 13 and requests[-1]["messages"][0]["content"][1]["type"] == "image_url"
    assert {f"judge.{v}" for v in results["questions"]} <= set(values(results))


def test_a_judge_is_sent_a_jpeg():
    head, body = data_uri(Image.new("RGB", (8, 8), (200, 30, 30))).split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == "data:image/jpeg" and image.format == "JPEG" and image.getpixel((4, 4))[0] > 190


@pytest.mark.parametrize("reply", [{"error": "no such model"}, {"choices": []}, {"choices": None}, "<html>", [1]])
def test_a_reply_without_an_answer_is_told(reply, tmp_path, server):
    pytest.importorskip("openai")
    url, requests = server
    requests.reply = reply
    with pytest.raises(UserError, match=f"--judge {url}: no answer .*the same command goes on"):
        Judge(url, "m").ask([("q", None)], tmp_path / "judged.jsonl")


def test_a_judge_that_is_not_there(tmp_path, monkeypatch):
    openai = pytest.importorskip("openai")
    monkeypatch.setattr(openai, "OpenAI", lambda **options: _Dead(openai))
    with pytest.raises(UserError, match="the same command goes on"):
        Judge("http://127.0.0.1:9/v1", "m").ask([("q", None)], tmp_path / "judged.jsonl")
    assert [yes_or_no(t) for t in ("Yes.", '"no"', "**No**, it", "maybe", "")] == [True, False, False, None, None]


class _Dead:
    def __init__(self, openai):
        def create(**_):
            raise openai.OpenAIError("Connection error.")

        self.chat = SimpleNamespace(completions=SimpleNamespace(create=create))
