"""The scores on answers made by hand, and what the report makes of them."""

import json
import operator
import re
from pathlib import Path

import pytest
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.evaluation.answering import Item
from minigpt4.evaluation.data import Record
from minigpt4.evaluation.page import results_of
from minigpt4.evaluation.scoring import Scored
from minigpt4.evaluation.statistics import summarize
from recipes import steps
from recipes.quickstart import report, run, scores


def picture(*names: str, scene: str = "beach", caption: str = "", image: str = "1.jpg", **synonyms) -> Record:
    objects = [{"name": name, "place": "left", "synonyms": synonyms.get(name, [])} for name in names]
    return Record(image, Path(image), {"scene": scene, "objects": objects, "caption": caption})


ALL = [
    picture("fox", "umbrella"), picture("car", dog=["puppy"]), picture("dog", dog=["puppy"]), picture("wolf"),
    picture("fire engine", **{"fire engine": ["fire truck"]}), picture("engine"), picture("sun"), picture("T-Rex"),
]  # fmt: skip
VOCABULARY = scores.vocabulary_of(ALL)


def judged(answers: list[str], pictures: list[Record], vocabulary=None, hit_limit: bool = False) -> Scored:
    items = [Item(shown, "What is this?") for shown in pictures]
    said = [{"answer": answer, "hit_limit": hit_limit} for answer in answers]
    return scores.score(items, said, vocabulary or scores.vocabulary_of(pictures))


@pytest.mark.parametrize(
    ("answer", "here", "right", "wrong"),
    [
        ("A fox under an Umbrella.", ("fox", "umbrella"), {"fox", "umbrella"}, set()),
        ("Two foxes, three umbrellas, wolves.", ("fox", "umbrella", "wolf"), {"fox", "umbrella", "wolf"}, set()),
        ("A foxy cartoon; the carpet is dogged.", ("fox", "dog"), set(), set()),
        ("a puppy next to a car", ("dog",), {"dog"}, {"car"}),
        ("A fire-engine. A fire\ntruck.", ("fire engine",), {"fire engine"}, set()),
        ("A fire engine.", ("engine",), set(), {"fire engine"}),
        ("An engine.", ("fire engine",), set(), {"engine"}),
        ("A t rex and a T-Rex.", ("T-Rex",), {"T-Rex"}, set()),
        ("Cars, cars and a car; a puppy, a dog.", ("fox",), set(), {"cars", "puppy"}),  # two things
        ("", ("fox",), set(), set()),
    ],
)
def test_objects(answer, here, right, wrong):
    shown = picture(*here, dog=["puppy"], **{"fire engine": ["fire truck"]})
    marks = scores.mentions(answer, shown.truth, VOCABULARY)
    assert {name for mark in marks for name in mark.names} & set(here) == right
    measures = {m.name: m.stats[0] for m in judged([answer], [shown], VOCABULARY).measures}
    assert measures["objects_right"].tolist() == [len(right), len(here)]
    said = {answer[mark.start : mark.end].lower() for mark in marks if not mark.right}
    assert wrong <= said and measures["objects_wrong"][0] == len(wrong)


def test_what_the_caption_mentions_is_not_wrong():
    answer = "A fox in the sun, with a dog."
    sunny = picture("fox", caption="A fox at the beach. The sun shines.")
    for shown, wrong in ((sunny, ["dog"]), (picture("fox"), ["sun", "dog"])):
        marks = scores.mentions(answer, shown.truth, VOCABULARY)
        assert [answer[mark.start : mark.end] for mark in marks if not mark.right] == wrong


@pytest.mark.parametrize(
    ("answer", "scene", "named"),
    [("On the beach.", "beach", True), ("Beaches", "beach", True), ("A beachcomber", "beach", False)],
)
def test_scene(answer, scene, named):
    measures = {m.name: m.stats for m in judged([answer], [picture("fox", scene=scene)], VOCABULARY).measures}
    assert measures["scene_right"].tolist() == [[named, 1]]


def test_summary_is_a_share_of_objects_not_of_pictures():
    pictures = [picture("fox", "dog"), picture("car")]
    first = judged(["A fox and a car.", "A fox"], pictures).measures
    summary = summarize(first, ["0", "1"])
    assert summary["objects_right"]["value"] == pytest.approx(1 / 3)
    assert summary["objects_wrong"]["value"] == 1.0
    assert summary["failed"]["value"] == summary["breaks off"]["value"] == 0.5
    assert (summary["objects_right"]["low"], summary["objects_right"]["high"]) == (0.0, 0.5)
    assert summary["repeats"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    second = judged(["A fox and a dog.", "A car."], pictures).measures
    change = summarize(second, ["0", "1"], first)["objects_right"]
    assert change["value"] == pytest.approx(2 / 3)
    assert (change["low"], change["high"]) == (0.5, 1.0)


def test_interval_of_a_coin():
    """100 pictures, half of them right: the normal approximation says 0.5 +- 0.098."""
    pictures = [picture("fox")] * 100
    measures = judged(["A fox."] * 50 + ["Nothing."] * 50, pictures).measures
    found = summarize(measures, [str(i) for i in range(100)])["objects_right"]
    assert found["value"] == 0.5
    assert found["low"] == pytest.approx(0.402, abs=0.015)
    assert found["high"] == pytest.approx(0.598, abs=0.015)


def test_swapped_is_what_naming_blindly_gets():
    pictures = [picture("fox"), picture("dog", "wolf"), picture("car")]
    for answers, share in ((["a fox", "a dog, a wolf", "a car"], 0), (["fox, dog"] * 3, 4 / 8)):
        scored = judged(answers, pictures)
        assert scored.facts["objects_right_shuffled"] == pytest.approx(share)
        assert f"shuffled among the pictures, {share:.1%}" in scored.notes[-1]


# -- the report -----------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """A quickstart folder with ten pictures and answers, as if both stages had run."""
    names = ["fox", "dog", "car", "wolf", "sun"]
    pictures = []
    for i in range(10):
        file = tmp_path / f"p{i}.png"
        Image.new("RGB", (64, 64), (20 * i, 100, 100)).save(file)
        pictures.append(picture(names[i % 5], names[(i + 1) % 5], scene="A & B", image=str(file)))
    two = [f"There is a {p.truth['objects'][0]['name']} and a car." for p in pictures]
    said = {
        "warm_start": judged(["the the"] * 10, pictures),
        "stage1": judged(["a <b>fox</b> and a wolf " * 12] * 10, pictures, None, True),
        "stage2": judged(two, pictures),
    }
    found = results_of([Item(shown, "What is this?") for shown in pictures], said)
    for shown, row in zip(pictures, found["items"], strict=True):
        first, second = (thing["name"] for thing in shown.truth["objects"])
        row |= {"objects": [first, second], "named": sorted({first} | ({"car"} & {second}))}
    return found | {
        "stages": scores.STAGES, "config": "tiny_eval.yaml", "data": ["sample_set"], "split": None, "objects": 20,
        "questions": {"": "What is this?"}, "checkpoints": {"stage2": "two.pth"}, "trained": 1234,
        "losses": {"warm_start": [4.0, 3.0], "stage1": [3.0, 2.5, 2.0]},  # of a run that could not write its log
        "samples": {"seed": 0, "stage1": 300, "stage2": 100, "heldout": 10}, "tokens_per_second": {"stage1": 1234.5},
        "decoding": {"do_sample": False, "num_beams": 1, "max_new_tokens": 96, "repetition_penalty": 1.1},
        "seconds": {"weights": 3.2, "features": 8.0, "stage1": 130.0, "stage2": 61.0, "answers": 20.0},
    }  # fmt: skip


def test_results(results):
    one, two = results["scores"]["stage1"], results["scores"]["stage2"]
    assert one["objects_right"]["value"] == 8 / 20  # fox and wolf, in four pictures each
    assert two["objects_right"]["value"] == 12 / 20  # the first of each, and the car where it is the second
    assert (one["failed"]["value"], two["failed"]["value"]) == (1.0, 0.0)
    assert results["difference"]["failed"] == {"value": -1.0, "low": -1.0, "high": -1.0, "n": 10}
    assert results["items"][0]["stage1"]["flags"] == ["repeats", "token limit"]
    assert results["items"][0]["truth"] == "fox, dog · A & B"


def test_headline_and_summary_name_the_blind_guess_too(results):
    assert report.headline(results) == "The model names 60% of the objects in new pictures. Blind guessing gets 33%"
    lines = report.summary(results).split("\n")
    assert lines[0] == report.headline(results) + "."
    assert lines[2].split() == ["Warm", "start", "Stage", "1", "Stage", "2"]
    assert [line.split()[-3:] for line in lines[3:]] == [
        ["0.0%", "40.0%", "60.0%"], ["0.00", "1.20", "0.60"], ["0.0%", "0.0%", "0.0%"], ["100.0%", "100.0%", "0.0%"],
    ]  # fmt: skip


def test_the_worst_objects(results):
    expected = [("dog", 4, 2, ["car"]), ("fox", 4, 2, ["car"]), ("sun", 4, 2, ["car"]), ("wolf", 4, 2, [])]
    assert scores.confusions(results, 8) == expected and scores.confusions(results, 2) == expected[:2]


def test_marks_are_where_the_objects_are_named():
    answer = "The fox, two dogs\nand a fire  truck."
    (verdict,) = judged([answer], [picture("fox", "dog")], VOCABULARY).verdicts
    parts = [(answer[start:end], kind) for start, end, kind in verdict["marks"]]
    assert parts == [("fox", "right"), ("dogs", "right"), ("fire  truck", "wrong")]


def test_page_stands_alone(results, tmp_path):
    report.write(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == page.count("<article") == 8
    assert all(source.startswith("data:image/") for source in sources)
    assert page.count("<svg") == 2 and "loss 4.00" in page and "→ 2.31" in page and "3 steps" in page
    assert "&lt;b&gt;" in page and "<b>fox" not in page  # answers are text, never markup
    assert "dog, car · A &amp; B" in page
    shown = [items[0]["stage2"] for items in report.shown_pictures(results, 8).values()]
    for kind in ("right", "wrong"):
        marked = sum(mark[2] == kind for verdict in shown for mark in verdict["marks"])
        assert page.count(f'"{kind}">') - 1 >= marked > 0  # one more in the legend
    assert "2 min 10 s" in page and "1,234 tokens/s" in page and "50 pictures/s" in page and "1.5 answers/s" in page
    assert "1,234 weights" in page and "two.pth" in page


def test_earlier_answers_are_cut_and_their_marks_with_them():
    verdict = {"answer": "a fox and a wolf", "marks": [[2, 5, "right"], [12, 16, "wrong"]]}
    assert report.marked(verdict, None) == 'a <mark class="right">fox</mark> and a <mark class="wrong">wolf</mark>'
    assert report.marked(verdict, 14) == 'a <mark class="right">fox</mark> and a wo…'
    assert report.marked({"answer": "", "marks": []}, 14) == "<i>nothing</i>"


def test_held_out_pictures_are_read(tmp_path):
    (tmp_path / "heldout").mkdir()
    file = tmp_path / "heldout" / "annotations.json"
    rows = [picture("fox").truth | {"image_id": str(i), "image": f"image/{i}.jpg"} for i in range(20)]
    file.write_text(json.dumps({"annotations": rows}))
    found = scores.read_heldout(tmp_path)
    assert [p.id for p in found] == [str(i) for i in range(20)] and found[3].image == file.parent / "image/3.jpg"
    for text, message in (("{", "cannot be read"), ('{"annotations": []}', "lists no picture")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            scores.read_heldout(tmp_path)


def test_clock_adds_up_stopped_training_and_keeps_what_is_done(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])

    def spend(name, seconds, done=False, fail=False):
        clock = steps.Clock(tmp_path / "steps.json", run.STEPS)
        try:
            with clock.step(name, "title", done, operator.add if name == "stage1" else max):
                now[0] += seconds
                if fail:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        return json.loads((tmp_path / "steps.json").read_text())["seconds"][name]

    assert spend("stage1", 30, fail=True) == 30
    assert spend("stage1", 40) == 70
    assert spend("stage1", 5, done=True) == 70
    assert spend("data", 20) == 20
    assert spend("data", 1) == 20
