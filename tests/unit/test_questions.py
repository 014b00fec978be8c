"""Questions made of captions: asked only where people agree, answered as they say."""

import json
from collections import Counter
from pathlib import Path

import pytest

from minigpt4.common.config_values import fill
from recipes.tiny.questions import Question, balanced, is_there, make_questions, questions_of
from recipes.tiny.task import Extra, with_questions

DOG = [
    "A black dog is running through the snow.",
    "A black dog running in the snow.",
    "The dog runs in the snow.",
    "A dog with a red collar is jumping.",
]


def asked(captions, kind):
    return [(q.question, q.answer) for q in questions_of(captions) if q.kind == kind]


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("animal", "What animal is in the picture?", "A dog."),
        ("colour", "What color is the dog?", "Black."),
        ("number", "How many dogs are there?", "One."),
        ("doing", "What is the dog doing?", "Running."),
        ("where", "Where is the dog?", "In the snow."),
    ],
)
def test_a_question_of_each_kind(kind, question, answer):
    assert (question, answer) in asked(DOG, kind)


@pytest.mark.parametrize(
    ("captions", "kind", "expected"),
    [
        (["A man in a blue shirt."] * 2 + ["A man in a red shirt."] * 2, "colour", []),  # they do not agree
        (["A man in grey pants.", "A man in gray pants."], "colour", [("What color are the pants?", "Gray.")]),
        (["A brown and white dog."] * 2, "colour", [("What color is the dog?", "Brown and white.")]),
        (["A white and brown dog."] * 2, "colour", [("What color is the dog?", "Brown and white.")]),
        (["Two dogs play.", "Two brown dogs.", "Two dogs."], "number", [("How many dogs are there?", "Two.")]),
        (["Two dogs play.", "Three dogs play."], "number", []),
        (["A dog and another dog.", "A dog.", "A dog."], "number", []),  # there may be more than one
        (["A man and a dog.", "A cat."], "animal", []),
        (["An elephant.", "A large elephant."], "animal", [("What animal is in the picture?", "An elephant.")]),
        (["A young lady smiles.", "A woman smiles."], "who", [("Who is in the picture?", "A woman.")]),
        (["A man.", "Two men."], "who", []),
        (["A boy riding a bicycle."] * 2, "doing", [("What is the boy doing?", "Riding a bike.")]),
        (["A man wearing a hat.", "A man is wearing a hat."], "doing", []),
        (["People on the beach.", "People at the beach."], "where", [("Where are they?", "On the beach.")]),
        (["A bus on the street."] * 2, "where", [("Where was this picture taken?", "On the street.")]),
    ],
)  # fmt: skip
def test_it_is_asked_only_where_people_agree(captions, kind, expected):
    assert asked(captions, kind) == expected


def test_of_each_thing_yes_is_as_often_right_as_no():
    photos = {f"{i}.jpg": ["A dog.", "A dog."] if i < 200 else ["A puppy.", "A pet."] for i in range(300)}
    photos |= {f"{i}.jpg": ["A horse runs.", "A brown horse."] for i in range(300, 400)}
    there = is_there(photos)
    about_dogs = [(image, q.answer) for image, qs in there.items() for q in qs if "dog" in q.question]
    assert Counter(answer for _, answer in about_dogs) == {"Yes.": 8, "No.": 8}  # one in 45 of 400
    assert all(
        (int(image.split(".")[0]) < 200) == (answer == "Yes.") for image, answer in about_dogs
    )  # a puppy is a dog
    assert is_there(photos) == there


def test_what_is_commonest_is_no_safe_guess():
    many = {str(i): [Question("number", "How many?", "One." if i else "Two.", ())] for i in range(100)}
    kept = Counter(q.answer for questions in balanced(many).values() for q in questions)
    assert kept == {"One.": 1, "Two.": 1}


def test_the_file_is_what_the_evaluation_and_the_training_read(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    rows = [{"image": f"{i}.jpg", "split": split, "captions": DOG} for i, split in enumerate(["train", "train", "dev"])]
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = make_questions(tmp_path / "photos.jsonl", ["train", "dev"], tmp_path / "questions.jsonl")
    assert counts == {"colour": 3, "doing": 3, "where": 3}  # one dog everywhere is no question
    pairs = [(tmp_path / "photos" / f"{i}.jpg", DOG) for i in (1, 0, 7)]
    found = with_questions(pairs, tmp_path / "questions.jsonl")
    assert [path.name for path, _ in found] == ["1.jpg", "0.jpg"]
    assert ("What color is the dog?", "Black.") in found[0][1]
    line = json.loads((tmp_path / "questions.jsonl").read_text().splitlines()[0])
    assert {"image", "split", "type", "question", "answers"} <= line.keys()


def test_the_key_is_known():
    problems: list[str] = []
    assert fill(Extra, {"questions": "a.jsonl"}, "x.", problems).questions == "a.jsonl" and not problems
