"""The scores on answers made by hand, and what the report makes of them."""

import io
import json
import operator
import re

import pytest
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.evaluation.statistics import Measure, summarize
from minigpt4.tools import answers, quickstart, report, report_picture, report_text, scores, steps


def picture(*names: str, scene: str = "beach", caption: str = "", **synonyms) -> dict:
    objects = [{"name": name, "place": "left", "synonyms": synonyms.get(name, [])} for name in names]
    return {"image_id": "1", "image": "1.jpg", "scene": scene, "objects": objects, "caption": caption}


ALL = [
    picture("fox", "umbrella"), picture("car", dog=["puppy"]), picture("dog", dog=["puppy"]), picture("wolf"),
    picture("fire engine", **{"fire engine": ["fire truck"]}), picture("engine"), picture("sun"), picture("T-Rex"),
]  # fmt: skip
VOCABULARY = scores.vocabulary_of(ALL)


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
    assert scores.objects_right(answer, shown, VOCABULARY) == right
    assert scores.objects_wrong(answer, shown, VOCABULARY) == wrong


def test_what_the_caption_mentions_is_not_wrong():
    answer = "A fox in the sun, with a dog."
    sunny = picture("fox", caption="A fox at the beach. The sun shines.")
    assert scores.objects_wrong(answer, sunny, VOCABULARY) == {"dog"}
    assert scores.objects_wrong(answer, picture("fox"), VOCABULARY) == {"dog", "sun"}


@pytest.mark.parametrize(
    ("answer", "scene", "named"),
    [("On the beach.", "beach", True), ("Beaches", "beach", True), ("A beachcomber", "beach", False)],
)
def test_scene(answer, scene, named):
    assert scores.scene_right(answer, picture("fox", scene=scene)) is named


def measured(answers: list[str], pictures: list[dict]) -> list[Measure]:
    vocabulary = scores.vocabulary_of(pictures)
    judged = [scores.judge(a, False, p, vocabulary) for a, p in zip(answers, pictures, strict=True)]
    return scores.measures(pictures, judged)


def test_summary_is_a_share_of_objects_not_of_pictures():
    pictures = [picture("fox", "dog"), picture("car")]
    first = measured(["A fox and a car.", "A fox"], pictures)
    summary = summarize(first, ["0", "1"])
    assert summary["objects_right"]["value"] == pytest.approx(1 / 3)
    assert summary["objects_wrong"]["value"] == 1.0
    assert summary["failed"]["value"] == summary["breaks off"]["value"] == 0.5
    assert (summary["objects_right"]["low"], summary["objects_right"]["high"]) == (0.0, 0.5)
    assert summary["repeats"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    second = measured(["A fox and a dog.", "A car."], pictures)
    change = summarize(second, ["0", "1"], first)["objects_right"]
    assert change["value"] == pytest.approx(2 / 3)
    assert (change["low"], change["high"]) == (0.5, 1.0)


def test_interval_of_a_coin():
    """100 pictures, half of them right: the normal approximation says 0.5 +- 0.098."""
    pictures = [picture("fox")] * 100
    measures = measured(["A fox."] * 50 + ["Nothing."] * 50, pictures)
    found = summarize(measures, [str(i) for i in range(100)])["objects_right"]
    assert found["value"] == 0.5
    assert found["low"] == pytest.approx(0.402, abs=0.015)
    assert found["high"] == pytest.approx(0.598, abs=0.015)


def test_swapped_is_what_naming_blindly_gets():
    pictures = [picture("fox"), picture("dog"), picture("car")]
    vocabulary = scores.vocabulary_of(pictures)
    assert scores.objects_right_swapped(pictures, ["a fox", "a dog", "a car"], vocabulary) == 0.0
    assert scores.objects_right_swapped(pictures, ["fox, dog"] * 3, vocabulary) == pytest.approx(2 / 3)


# -- the report -----------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """A quickstart folder with ten pictures and answers, as if both stages had run."""
    names = ["fox", "dog", "car", "wolf", "sun"]
    pictures = [picture(names[i % 5], names[(i + 1) % 5], caption=f"A & B {i}") for i in range(10)]
    for i, shown in enumerate(pictures):
        shown |= {"image_id": f"p{i}", "image": f"p{i}.jpg"}
        Image.new("RGB", (64, 64), (20 * i, 100, 100)).save(tmp_path / shown["image"])
    for stage in ("stage1", "stage2"):
        (tmp_path / stage).mkdir()
        rows = [{"step": s, "loss": 3 - s / 10, "lr": 1e-3} for s in range(1, 6)] + [{"step": 5, "note": "no loss"}]
        (tmp_path / stage / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {
        "stage1": [("a <b>fox</b> and a wolf " * 12, True)] * 10,
        "stage2": [(f"There is a {p['objects'][0]['name']} and a car.", False) for p in pictures],
    }
    losses = {stage: quickstart.read_losses(tmp_path / stage / "log.jsonl") for stage in said}
    seconds = {"weights": 3.2, "stage1": 130.0, "stage2": 61.0, "answers": 20.0}
    found = answers.evaluate(pictures, said, scores.vocabulary_of(pictures))
    return found | {"losses": losses, "seconds": seconds, "trained": 1234}


def test_results(results):
    one, two = results["scores"]["stage1"], results["scores"]["stage2"]
    assert one["objects_right"]["value"] == 8 / 20  # fox and wolf, in four pictures each
    assert two["objects_right"]["value"] == 12 / 20  # the first of each, and the car where it is the second
    assert (one["failed"]["value"], two["failed"]["value"]) == (1.0, 0.0)
    assert results["difference"]["failed"] == {"value": -1.0, "low": -1.0, "high": -1.0, "n": 10}
    assert results["losses"]["stage1"]["loss"] == pytest.approx([2.9, 2.8, 2.7, 2.6, 2.5])
    assert results["shown"] == [f"p{i}" for i in range(8)]
    assert results == json.loads(json.dumps(results))


def test_headline_says_what_happened(results):
    assert report_text.headline(results) == "After stage 2 the model names 60% of the objects, up from 40%"
    results["scores"]["stage1"], results["scores"]["stage2"] = results["scores"]["stage2"], results["scores"]["stage1"]
    assert report_text.headline(results) == "After stage 2 the model names 40% of the objects, down from 60%"


def test_segments_join_to_the_answer():
    answer = "The fox, two dogs\nand a fire  truck."
    parts = report_text.segments(answer, picture("fox", "dog"), VOCABULARY)
    assert "".join(text for text, _ in parts) == answer
    assert [part for part in parts if part[1]] == [("fox", "right"), ("dogs", "right"), ("fire  truck", "wrong")]


def test_page_stands_alone(results, tmp_path):
    curves = report_picture.draw_curves(results["losses"])
    page = report.html_page(results, tmp_path, curves)
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 9  # the curves and eight pictures
    assert all(source.startswith("data:image/") for source in sources)
    assert page.count("<article") == 8
    assert "&lt;b&gt;" in page and "<b>fox" not in page  # answers are text, never markup
    assert "A &amp; B 3" in page
    assert page.count('<mark class="right">dog</mark>') == 2  # pictures 1 and 6
    assert page.count('<mark class="wrong">car</mark>') == 4  # pictures 0, 3, 4, 5
    assert "2 min 10 s" in page and "1,234 weights" in page


def test_picture(results, tmp_path):
    curves = report_picture.draw_curves(results["losses"])
    assert Image.open(io.BytesIO(curves)).format == "PNG"
    sheet = report_picture.draw(results, tmp_path, curves)
    assert sheet.width == report_picture.WIDTH
    colours = {colour for _, colour in sheet.getcolors(1 << 24)}
    for i in range(8):  # every picture is on it, as are both marks
        assert any(abs(r - 20 * i) < 4 and abs(g - 100) < 4 and abs(b - 100) < 4 for r, g, b in colours), i
    assert (0xCD, 0xEE, 0xD6) in colours and (0xFB, 0xD5, 0xD1) in colours


def test_smoothing_follows_a_line_and_halves_noise():
    assert report_picture.smoothed([5.0, 4.0, 3.0, 2.0]) == pytest.approx([5.0, 4.0, 3.0, 2.5])
    assert report_picture.smoothed([0.0, 3.0, 0.0, 3.0, 0.0]) == pytest.approx([0.0, 1.0, 2.0, 1.0, 1.5])
    assert report_picture.smoothed([1.0] * 100 + [2.0] * 100)[99] == pytest.approx(1 + 6 / 13)


def test_held_out_order_never_changes(tmp_path):
    (tmp_path / "heldout").mkdir()
    file = tmp_path / "heldout" / "annotations.json"
    file.write_text(json.dumps({"annotations": [picture("fox") | {"image_id": str(i)} for i in range(20)]}))
    orders = [[p["image_id"] for p in answers.read_heldout(tmp_path)] for _ in range(2)]
    assert orders[0] == orders[1] and orders[0] != sorted(orders[0], key=int)
    file.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        answers.read_heldout(tmp_path)


def test_clock_adds_up_stopped_training_and_keeps_what_is_done(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])

    def spend(name, seconds, done=False, fail=False):
        clock = steps.Clock(tmp_path / "steps.json", quickstart.STEPS)
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
