"""Metrics of `minigpt4 eval` on published and hand-counted examples, and its readers of annotation files."""

import json

import numpy as np
import pytest
from made import picture

from minigpt4.common.errors import DataError
from minigpt4.evaluation import objects as things
from minigpt4.evaluation.captions import bleu_of, caption_measures, has_java, plain_tokens, tokenize
from minigpt4.evaluation.data import read_records
from minigpt4.evaluation.failures import failure
from minigpt4.evaluation.scoring import Tools
from minigpt4.evaluation.suites import SUITES
from minigpt4.evaluation.vqa_scores import counted_accuracy, exact, holds, normalize, soft_accuracy

PHOTOS, QUESTIONS = SUITES["caption"].data, SUITES["vqa"].data

# ---------------------------------------------------------------------- captions

PAPINENI = [  # the example of the BLEU paper (2002), section 2.1
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]
CANDIDATES = [
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "It is to insure the troops forever hearing the activity guidebook that party direct",
]


def score(name, answers, references):
    (measure,) = (m for m in caption_measures(answers, references, java=False) if m.name == name)
    return measure.value(measure.stats.sum(0)), measure


def test_bleu_of_the_papers_example():
    """Published: unigrams 17/18 and 8/14, bigrams 10/17 and 1/13."""
    _, measure = score("bleu2", CANDIDATES, [PAPINENI] * 2)
    length, closest, *counts = measure.stats[0]
    assert (length, closest) == (18, 18) and counts[:2] == [17, 10] and counts[4:6] == [18, 17]
    length, closest, *counts = measure.stats[1]
    assert (length, closest) == (14, 16) and counts[:2] == [8, 1] and counts[4:6] == [14, 13]
    assert score("bleu1", CANDIDATES[:1], [PAPINENI])[0] == pytest.approx(17 / 18)
    both = np.sqrt(25 / 32 * 11 / 30) * np.exp(1 - 34 / 32)  # as one corpus, shorter than its references
    assert score("bleu2", CANDIDATES, [PAPINENI] * 2)[0] == pytest.approx(both)


def test_bleu_is_the_librarys():
    from pycocoevalcap.bleu.bleu import Bleu

    said = tokenize({str(i): [c] for i, c in enumerate(CANDIDATES)}, java=False)
    wanted, _ = Bleu(4).compute_score({k: tokenize({k: PAPINENI}, False)[k] for k in said}, said, verbose=0)
    _, measure = score("bleu4", CANDIDATES, [PAPINENI] * 2)
    assert [bleu_of(measure.stats.sum(0), n) for n in (1, 2, 3, 4)] == pytest.approx(wanted)
    assert bleu_of(np.zeros(10), 4) == pytest.approx(0, abs=1e-9)


def test_rouge_of_the_papers_example():
    """Lin (2004): "police kill the gunman" 0.75, "the gunman kill police" 0.5 of "police killed the gunman"."""
    reference = [["police killed the gunman"]]
    assert score("rouge_l", ["Police kill the gunman."], reference)[0] == pytest.approx(0.75)
    assert score("rouge_l", ["the gunman kill police"], reference)[0] == pytest.approx(0.5)


def test_cider_by_hand():
    """Two pictures, a reference each, no word in common: every n-gram weighs log 2. The first answer is its reference:
    cosine 1 for n = 1 to 4, times 10. The second shares one of four words and no longer n-gram: 10 * 1/4 / 4."""
    references = [["red birds fly home"], ["one two three four"]]
    value, measure = score("cider", ["red birds fly home", "five six one seven"], references)
    assert measure.stats[:, 0] == pytest.approx([10, 0.625]) and value == pytest.approx(5.3125)


def test_tokens_without_java_are_ptbs():
    texts = [
        "It's a dog's bowl, isn't it?",
        "He can't; they've gone... \"yes\" - no!",
        "a person 's well-known hat",
        "1,000 people",
    ]
    wanted = [
        "it 's a dog 's bowl is n't it",
        "he ca n't they 've gone yes no",
        "a person 's well-known hat",
        "1,000 people",
    ]
    assert [plain_tokens(text) for text in texts] == wanted
    if has_java():
        assert tokenize({"a": texts, "b": ["", "x\r\ny"]}, java=True) == {"a": wanted, "b": ["", "x y"]}


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "answer, hit_limit, verse, reason",
    [
        ("A dog runs on the beach.", False, False, ""),
        ("", False, False, "empty"),
        (" ...", False, False, "empty"),
        ("A dog.<|im_end|>", False, False, "leak"),
        ("Human: what is it?", False, False, "leak"),
        ("A dog. ###", False, False, "leak"),
        ("A dog \ufffd.", False, False, "non-text"),
        ("a{]]}[(;=+=;)]}", False, False, "non-text"),
        ("Это собака на пляже.", False, False, "non-text"),
        ("The dog is big. The dog is big.", False, False, "repeats"),
        ("It is in the sun and it is in the sun and it is in the sun.", False, False, "repeats"),
        ("A dog that", False, False, "breaks off"),
        ("A dog.", True, False, "breaks off"),
        ("O dog,\nso fair", False, True, ""),
        ("O dog,\nso fair", True, True, "breaks off"),
        ("a fox on a beach, a fox on a beach, a fox on a beach", False, False, "repeats"),
        ("a fox on a beach, a fox on a beach.", False, False, ""),  # four words twice only
        ("The sky is blue. A fox sits. The sky is blue.", False, False, "repeats"),
        ("The sky is blue. The sea is blue. The sand is not.", False, False, ""),
        ("very very very very very very good", False, False, "repeats"),
        ("Is it a fox?", False, False, ""),
        ('It says "fox."', False, False, ""),
        ("a fox,", False, False, "breaks off"),
        ("A fox. <|im_start|>user.", False, False, "leak"),
        ("A fox.\nAssistant: a dog.", False, False, "leak"),
        ("A fox.\nuser\nA dog.", False, False, "leak"),
        ("A user with a fox.", False, False, ""),
    ],
)
def test_what_counts_as_a_failure(answer, hit_limit, verse, reason):
    assert failure(answer, hit_limit, verse) == reason


# ---------------------------------------------------------------------- things

VOCABULARY = things.things_vocabulary()
COCO = things.read_vocabulary(things.COCO_SYNONYMS)


def test_each_word_names_one_thing():
    owners = {}
    for name, words in VOCABULARY:
        for form in {form for word in words for form in things.word_forms(word)}:
            owners.setdefault(form, set()).add(name)
    assert {form: names for form, names in owners.items() if len(things.finest(names)) > 1} == {}


def test_coco_has_its_80():
    names = [name for name, _ in COCO if name != things.NOTHING]
    assert len(names) == len(set(names)) == 80


@pytest.mark.parametrize(
    "text, named",
    [
        ("A hot dog on a dining table", {"hot dog", "dining table"}),
        ("two teddy bears", {"teddy bear"}),
        ("Women with knives near train tracks", {"person", "knife"}),
        ("a passenger jet and a baby elephant", {"airplane", "elephant"}),
        ("a street light, a wine-glass", {"traffic light", "wine glass"}),
        ("nothing here but category theory", set()),
    ],
)
def test_named_by_cocos_words(text, named):
    assert things.named(text, COCO) == named


def test_colours_and_verbs_are_no_things_for_coverage():
    assert things.named("A dog in an orange vest, bow and sub", VOCABULARY) == {"dog"}
    assert things.named("a crowd of onlookers and a dalmatian", VOCABULARY) == {"person", "dog"}


def test_main_things_are_those_of_half_the_captions():
    captions = ["A dog and a ball", "A puppy on a beach", "The dog plays", "a dog with a ball", "It plays with a ball"]
    assert things.main_things(captions, VOCABULARY) == {"dog": 4, "sports ball": 3}
    assert things.main_things(["a kite"], VOCABULARY) == {"kite": 1}
    assert things.main_things(["a kite", "a bed", "x", "y", "z"], VOCABULARY) == {}


def test_people_are_told_apart_as_far_as_captions_agree():
    assert things.named("Two boys", VOCABULARY) == {"boy", "child", "person"}
    assert things.seen("A boy and a rider", VOCABULARY) == {"boy", "person"}
    assert things.main_things(["a man", "a man", "a guy", "a rider"], VOCABULARY) == {"man": 3}
    assert things.main_things(["a boy", "a girl", "a kid", "a rider"], VOCABULARY) == {"child": 3}
    assert things.main_things(["a man", "a woman", "a rider"], VOCABULARY) == {"person": 3}

    def right(text, *there):
        return [m.right for m in things.find(text, VOCABULARY, there)]

    assert right("a woman and a person", "man") == [False, True]
    assert right("a woman, a boy", "person") == [True, True]
    assert right("a child, a man, a dog", "girl") == [True, False, False]


def test_labels():
    found = [things.label_of(c) for c in ("a photo of an emu", "a photo of a crocodile head", "a photo of a face")]
    assert found == ["emu", "crocodile", "face"]
    vocabulary = things.labels_vocabulary(["leopards", "emu"])
    assert things.named("An emu and a leopard.", vocabulary) == {"emu", "leopards"}


# ---------------------------------------------------------------------- VQA


@pytest.mark.parametrize(
    "said, form",
    [
        ("Two dogs, a cat.", "2 dogs cat"),
        ("The  YES!", "yes"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("wouldn'tve", "wouldn't've"),
        ("red/blue", "red blue"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("none", "0"),
    ],
)
def test_answers_in_the_vqa_challenges_form(said, form):
    assert normalize(said) == form


def test_soft_accuracy_leaves_each_person_out():
    people = ["yes"] * 2 + ["no"] * 8
    # left out a "yes": 1 of the others; a "no": 2 of them
    assert soft_accuracy("Yes.", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert soft_accuracy("no", people) == 1 and soft_accuracy("maybe", people) == 0
    assert soft_accuracy("x", ["x"] * 3 + ["y"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert counted_accuracy("Yes.", people) == pytest.approx(2 / 3)
    assert exact("A dog", ["dog"]) == 1 and exact("a dog runs", ["dog"]) == 0
    assert holds("I think yes, it is.", people, "soft") == soft_accuracy("yes", people)
    assert holds("eyes", people, "soft") == 0


# ---------------------------------------------------------------------- files


@pytest.fixture
def write(tmp_path):
    """write("a.json", content) -> path; the folder has images 1 and 2 under COCO's names."""
    for name in ("COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg", "n5.jpg"):
        (tmp_path / name).write_bytes(picture())

    def call(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    call.folder = str(tmp_path)
    return call


def read(write, kinds, *files, **more):
    more = {"images": write.folder, "split": None, "limit": None} | more
    return read_records(files, kinds=kinds, **more)


def questions(subtype="val2014", ids=(10, 11)):
    return {"data_subtype": subtype, "questions": [{"question_id": i, "image_id": 1, "question": "What?"} for i in ids]}


def annotations(subtype="val2014", ids=(10, 11)):
    answers = [{"answer": "dog", "answer_id": i} for i in range(10)]
    entries = [{"question_id": i, "image_id": 1, "answer_type": "other", "answers": answers} for i in ids]
    return {"data_subtype": subtype, "annotations": entries}


def test_vqa_files(write):
    records = read(write, QUESTIONS, write("q.json", questions()), write("a.json", annotations()))
    assert [r.id for r in records] == ["10", "11"] and records[0].image.name == "COCO_val2014_000000000001.jpg"
    assert records[0].truth["answers"] == ["dog"] * 10 and records[0].truth["rule"] == "soft"
    for q, a, message in [
        (questions(ids=(10, 12)), annotations(), "1 of 2 questions have no annotation .*; for example 12"),
        (questions(), annotations("train2014", ids=(20, 21)), "2 of 2 questions have no annotation"),
    ]:
        with pytest.raises(DataError, match=message):
            read(write, QUESTIONS, write("q.json", q), write("a.json", a))
    with pytest.raises(DataError, match=r"two files, the annotations are missing: .*visualqa.org"):
        read(write, QUESTIONS, write("q.json", questions()))
    with pytest.raises(DataError, match="holds one split alone; leave --split out"):
        read(write, QUESTIONS, write("q.json", questions()), write("a.json", annotations()), split="train2014")
    with pytest.raises(DataError, match=r"1 of 1 images are not there, for example .*000000000007.jpg"):
        q = {"questions": [{"question_id": 1, "image_id": 7, "question": "?"}]}
        a = {"annotations": [{"question_id": 1, "answers": [{"answer": "x"}]}]}
        read(write, QUESTIONS, write("q.json", q), write("a.json", a))


def test_gqa_and_aokvqa(write):
    gqa = {"7": {"imageId": "n5", "question": "Is it?", "answer": "yes", "types": {"structural": "verify"}}}
    (record,) = read(write, QUESTIONS, write("g.json", gqa))
    assert record.image.name == "n5.jpg" and record.truth["rule"] == "exact" and record.truth["type"] == "verify"
    entry = {"question_id": "x", "image_id": 2, "question": "Why?", "choices": ["a", "b", "c", "d"], "split": "val"}
    answered = {**entry, "correct_choice_idx": 2, "direct_answers": ["c"] * 10, "difficult_direct_answer": False}
    hard = {**answered, "question_id": "y", "difficult_direct_answer": True}
    records = read(write, QUESTIONS, write("k.json", [answered, hard]))
    items = SUITES["vqa"].items(records)
    assert [(i.record.id, i.variant) for i in items] == [("x", "open"), ("x", "choice"), ("y", "choice")]
    answers = [
        {"answer": "C"},
        {"scores": [-9, -9, -3, -4]},
        {"scores": [0, -1, -2, -3]},
    ]
    got = {m.name: m.value(m.stats.sum(0)) for m in SUITES["vqa"].score(items, answers, Tools()).measures}
    assert got["open"] == 1 and got["choice"] == 0.5
    with pytest.raises(DataError, match="have no answers; the test split"):
        read(write, QUESTIONS, write("k.json", [entry]))


def coco(images=((1, 100, 100), (2, 100, 100))):
    return [{"id": i, "file_name": f"COCO_val2014_{i:012}.jpg", "height": h, "width": w} for i, h, w in images]


def test_coco_files(write):
    captions = {"images": coco(), "annotations": [{"image_id": i, "caption": f"A dog {i}."} for i in (1, 1, 2)]}
    instances = {
        "images": coco(), "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "cup"}],
        "annotations": [
            {"image_id": 1, "category_id": 3, "area": 600, "iscrowd": 0},
            {"image_id": 1, "category_id": 4, "area": 400, "iscrowd": 0},
            {"image_id": 2, "category_id": 4, "area": 30, "iscrowd": 0},
            {"image_id": 2, "category_id": 3, "area": 9000, "iscrowd": 1},
        ],
    }  # fmt: skip
    one, two = read(write, PHOTOS, write("c.json", captions), write("i.json", instances))
    assert one.truth == {"captions": ["A dog 1.", "A dog 1."], "objects": ["cup", "dog"], "main": ["dog"]}
    assert two.truth["main"] == ["cup"] and two.truth["objects"] == ["cup", "dog"]
    assert len(read(write, PHOTOS, write("c.json", captions), limit=1)) == 1
    answers = [{"answer": "A dog."}, {"answer": "An orange dog."}]
    one.truth["main"].append("orange")
    items = SUITES["coverage"].items([one, two])
    got = {m.name: m.value(m.stats.sum(0)) for m in SUITES["coverage"].score(items, answers, Tools()).measures}
    assert got["main_named"] == 1 / 2 and got["wrong"] == 0  # dog of dog; no cup
    instances["images"] = coco(((9, 1, 1),))
    instances["annotations"] = []
    with pytest.raises(DataError, match=r"not JSON|none of the formats"):
        read(write, PHOTOS, write("c.json", captions), write("i.json", instances))
    instances["annotations"] = [{"image_id": 9, "category_id": 3, "area": 1}]
    with pytest.raises(DataError, match=r"2 of 2 images of .*c.json are not in it; for example 1"):
        read(write, PHOTOS, write("c.json", captions), write("i.json", instances))


def test_karpathys_split(write):
    entry = {"filename": "n5.jpg", "split": "test", "sentences": [{"raw": "A dog."}]}
    (record,) = read(write, PHOTOS, write("k.json", {"images": [entry, {**entry, "split": "val"}]}), split="test")
    assert record.truth["captions"] == ["A dog."]


def test_files_of_no_use_are_refused(write):
    with pytest.raises(DataError, match=r"this is vqa questions, which the suite does not read. It reads\n  photos"):
        read(write, PHOTOS, write("q.json", questions()))
    with pytest.raises(DataError, match="none of the formats that are read"):
        read(write, PHOTOS, write("x.json", {"a": 1}))
    with pytest.raises(DataError, match="no such file or folder"):
        read(write, PHOTOS, "/nowhere.json")
    with pytest.raises(DataError, match="add --images FOLDER"):
        read(
            write,
            PHOTOS,
            write("c.json", {"images": coco(), "annotations": [{"image_id": 1, "caption": "x"}]}),
            images=None,
        )
