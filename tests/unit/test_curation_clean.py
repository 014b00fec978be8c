"""The rules of `minigpt4 curate`: which sentences stay, and which human captions are added."""

import pytest

from minigpt4.conversation.prompts import CHATML, VICUNA_V0, ChatState, Turn
from minigpt4.curation.clean import MAX_CAPTIONS, as_sentence, check_sentences, clean, split_sentences
from minigpt4.curation.describe import joined, second_question

CAPTIONS = ["A small dog is running on a beach.", "A brown dog runs.", "a dog with a stick in its mouth ."]


def reasons(answer: str, captions=CAPTIONS, **options) -> list[str]:
    return [why for _, why in clean(answer, captions, **options).sentences]


# ---------------------------------------------------------------------- form


def test_each_sentence_gets_its_reason():
    answer = (
        "A dog runs on grass. I'm sorry I made a mistake. The dog runs on the grass. ### Human: hi. I apologize for "
        "that. ### The dog and the dog and the dog and the dog. It is a. A cat sleeps in the"
    )
    got = [why for _, why in check_sentences(answer, hit_limit=True)]
    assert got == ["", "apology", "repeats", "meaningless", "apology", "meaningless", "unfinished", "unfinished"]


@pytest.mark.parametrize("sentence, hit_limit, why", [
    ("A cat sleeps", True, "unfinished"),
    ("A cat sleeps", False, ""),
    ("A cat sleeps with a.", False, "unfinished"),
    ("A cat, a dog,", False, "unfinished"),
    ("the dog and the cat and the dog and the cat and the dog and the cat.", False, "repeats"),
    ("It is.", False, "unfinished"),
    ("There it was.", False, "meaningless"),
    ("A broken \ufffd sign.", False, "meaningless"),
    ("As an AI language model I see a cat.", False, "apology"),
])  # fmt: skip
def test_one_sentence_by_its_form(sentence, hit_limit, why):
    assert check_sentences(sentence, hit_limit) == [(sentence, why)]


def test_texts_are_tidied():
    assert split_sentences("One. Two!\nThree") == ["One.", "Two!", "Three"]
    assert as_sentence("a  dog runs , and barks .") == "A dog runs, and barks."
    assert as_sentence("Is it a dog?") == "Is it a dog?"
    assert as_sentence("a photo of an emu") == "This is a photo of an emu."


def test_as_in_the_paper_only_form_counts():
    done = clean("A cat flies over Rome. A cat flies over Rome. I apologize for that.", CAPTIONS, checked=False)
    assert done.text == "A cat flies over Rome." and done.added == [] and done.lost == ""
    assert clean("### \ufffd", CAPTIONS, checked=False).lost == "nothing left"


# ---------------------------------------------------------------------- captions


@pytest.mark.parametrize("sentence, why", [
    ("A brown dog is running on the beach.", ""),
    ("The dogs run on a small beach.", ""),  # forms of the same words
    ("A black dog is running on the beach.", "unsupported"),
    ("Two dogs are running on the beach.", "unsupported"),
    ("A brown dog is running on the beach with a cat.", "unsupported"),
])  # fmt: skip
def test_every_word_needs_a_caption(sentence, why):
    assert reasons(sentence) == [why]


def test_supported_sentences_stay():
    done = clean("A small dog runs on the beach. It chases a duck.", CAPTIONS)
    assert done.sentences == [("A small dog runs on the beach.", ""), ("It chases a duck.", "unsupported")]
    assert done.text == "A small dog runs on the beach." and done.added == []


def test_captions_replace_an_answer_of_which_nothing_stays():
    done = clean("A cat flies over Rome.", CAPTIONS)
    assert done.text == "A small dog is running on a beach. A dog with a stick in its mouth."
    assert clean("", ["a photo of a beaver"]).text == "This is a photo of a beaver."
    alike = ["A dog runs on grass.", "The dog runs on the grass.", "A dog is running in grass."]
    assert clean("", alike).text == "A dog runs on grass."


def test_the_first_caption_is_the_most_typical():
    captions = ["A woman in a long red dress reads.", "A man walks a dog.", "A man with a dog walks.", "A man walks."]
    assert clean("", captions).text == "A man walks a dog."


def test_added_captions_are_few_and_belong_together():
    new = ["A man holds fish at a lake.", "A man wears a hat.", "A man carries a rod.", "A man eats an apple."]
    assert len(clean("", new).added) == MAX_CAPTIONS
    assert clean("", [*CAPTIONS, "Fried eggs for breakfast."]).text == clean("", CAPTIONS).text


def test_photos_are_dropped():
    apart = clean("A cat.", ["A boat at sea.", "Fried eggs for breakfast.", "Children dance."])
    assert (apart.text, apart.lost, apart.sentences) == ("", "captions disagree", [("A cat.", "unsupported")])
    assert clean("A cat.", []).lost == clean("A cat.", ["!!", "the"]).lost == "no human text"


# ---------------------------------------------------------------------- the second turn


@pytest.mark.parametrize("template", [CHATML, VICUNA_V0], ids=lambda t: t.name)
def test_a_second_turn_reads_as_two_turns_do(template):
    wanted = ChatState(template, [Turn("What?", ["image"], "A dog."), Turn("Continue")])
    got = ChatState(template, [Turn(second_question(template, "What?", "A dog.", "Continue"), ["image"])])
    assert got.segments() == wanted.segments()


def test_answers_are_joined():
    def both(first: str, second: str | None, hit_limit: bool = False) -> str:
        more = None if second is None else {"answer": second}
        return joined({"answer": first, "hit_limit": hit_limit}, more)

    assert both("A dog", "It runs.") == "A dog. It runs."
    assert both("A dog", "runs.", hit_limit=True) == "A dog runs."
    assert both("A dog.", None) == both("A dog.", "") == "A dog."
