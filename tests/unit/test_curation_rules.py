"""The rules of `minigpt4 curate`: what stays of an answer, and what people's captions add."""

import pytest

from minigpt4.conversation.prompts import CHATML, VICUNA_V0, ChatState, Turn
from minigpt4.curation import rules
from minigpt4.curation.claims import conflict, read_claims
from minigpt4.curation.describe import Description, second_question
from minigpt4.curation.rules import judge, repair, supported
from minigpt4.curation.sentences import introduce, label_sentence, refer_back, shortened, split, tidy, whole
from minigpt4.curation.words import concept, follows


def reasons(answer: str, captions: list[str], **options) -> dict[str, str]:
    return dict(repair(answer, captions, **options).sentences)


# ---------------------------------------------------------------------- words


def test_stems_join_forms_and_keep_words_apart():
    for one, other in [("puppies", "puppy"), ("riding", "rides"), ("running", "ran"), ("men", "man"), ("couch", "sofa"),
                       ("dresses", "dress"), ("beaches", "shore"), ("lying", "lay"), ("rode", "riding")]:  # fmt: skip
        assert concept(one) == concept(other), (one, other)
    for one, other in [("building", "build"), ("wooden", "forest"), ("trail", "street"), ("bus", "bush")]:
        assert concept(one) != concept(other), (one, other)


def test_what_follows_goes_up_not_down():
    assert concept("dog") in follows("poodle") and concept("poodle") not in follows("dog")
    assert {"child", "person"} <= follows("boy") and "boy" not in follows("child")
    assert concept("ride") in follows("riders") and "person" not in follows("riding")


# ---------------------------------------------------------------------- support

CAPTIONS = [
    "A man in a red shirt and a boy in a blue shirt are running on a beach.",
    "A man and his son run along the water.",
    "Two people jog on the sand with a small brown poodle.",
]


@pytest.mark.parametrize("sentence, right", [
    ("A boy in a blue shirt is running.", True),
    ("A child in a blue shirt is running.", True),  # a boy is a child
    ("A girl in a blue shirt is running.", False),
    ("A man in a blue shirt is running.", False),  # each word is there, of two people
    ("A boy in a blue shirt is running on a beach.", True),
    ("A boy in a blue shirt is running on a mountain.", False),
    ("Two people jog.", True),
    ("Three people jog.", False),
    ("Two boys are running.", False),
    ("A small brown dog.", True),  # the dog is a poodle
    ("A small brown terrier.", False),
    ("A black dog.", False),
    ("A small brown poodle sleeps.", False),
    ("A man runs with a poodle.", False),  # in two captions
    ("It is.", False),  # says nothing
])  # fmt: skip
def test_every_word_needs_a_caption(sentence, right):
    assert supported(read_claims(sentence), [read_claims(c) for c in CAPTIONS]) is right


def test_words_stand_near_each_other():
    captions = [read_claims("A boy wearing a blue shirt is pulling an item from a hat.")]
    assert not supported(read_claims("A boy is wearing a hat."), captions)
    assert supported(read_claims("A boy is wearing a shirt."), captions)


def test_a_colour_is_that_of_the_same_thing():
    captions = [read_claims("A dog carries a red ball in its mouth.")]
    assert not supported(read_claims("A dog carries a red mouth."), captions)
    assert supported(read_claims("A dog carries a red ball."), captions)


def test_counts_and_colours_are_read():
    claims = read_claims("Two men and a black and white dog sit on a red bench.")
    assert claims.counts == {"man": 2, "dog": 1, "bench": 1}
    assert claims.colours == {"dog": {"black", concept("white")}, "bench": {"red"}}
    assert read_claims("A group of four children.").counts == {"child": 4}


@pytest.mark.parametrize("one, other, wrong", [
    ("Two dogs play.", "Three dogs play.", True),
    ("Two dogs play.", "Dogs play.", False),
    ("A dog plays.", "Dogs play.", True),
    ("A man and a woman walk.", "Two people walk.", False),
    ("A man and a woman walk.", "Three people walk.", True),
    ("Several people walk.", "Two people walk.", True),
    ("A man skis.", "A woman skis.", True),
    ("A man skis.", "A person skis.", False),
    ("A boy waves.", "A child waves.", False),
    ("A horse runs.", "A cow runs.", True),
    ("A man sits.", "A man walks.", True),
    ("A red shirt.", "A blue shirt.", True),
    ("A brown and white dog.", "A brown dog.", False),
])  # fmt: skip
def test_conflicts(one, other, wrong):
    a, b = read_claims(one), read_claims(other)
    assert conflict(a, b) is wrong and conflict(b, a) is wrong


def test_both_may_be_there_when_one_caption_says_so():
    a, b, both = (read_claims(t) for t in ("A man skis.", "A woman skis.", "A man and a woman ski."))
    assert conflict(a, b) and not conflict(a, b, [both])


# ---------------------------------------------------------------------- form


def test_each_sentence_gets_its_reason():
    answer = (
        "A dog runs on grass. I'm sorry I made a mistake. The dog runs on the grass. ### Human: hi. I apologize for "
        "that. ### The dog and the dog and the dog and the dog. It is a. A cat sleeps in the"
    )
    got = [why for _, why in judge(answer, hit_limit=True)]
    assert got == ["", "apology", "repeats", "meaningless", "apology", "meaningless", "unfinished", "unfinished"]
    assert judge("A cat sleeps", hit_limit=True)[0][1] == "unfinished"
    assert judge("A cat sleeps", hit_limit=False)[0][1] == ""
    assert judge("the dog and the cat and the dog and the cat and the dog and the cat.")[0][1] == "repeats"
    assert set(got) - {""} <= set(rules.DROPS)


def test_texts_are_tidied():
    assert tidy('a  dog \'s bone ,with a "" big "" sign..') == "A dog's bone,with a “big” sign."
    assert split("One. Two!\nThree") == ["One.", "Two!", "Three"]
    assert label_sentence("a photo of a Irish water spaniel") == "This is a photo of an Irish water spaniel."
    for label, text in {"an hourglass": "an hourglass", "an ewer": "a ewer", "a umbrella": "an umbrella"}.items():
        assert label_sentence(f"a photo of {label}") == f"This is a photo of {text}."


@pytest.mark.parametrize("caption, text", [
    ("A girl riding a horse.", "A girl is riding a horse."),
    ("Two dogs running through water.", "Two dogs are running through water."),
    ("Young boy climbing a wall.", "A young boy is climbing a wall."),
    ("A man and a woman standing outside.", "A man and a woman are standing outside."),
    ("A dog in the snow.", "There is a dog in the snow."),
    ("Two men on a boat.", "There are two men on a boat."),
    ("A man rock climbing.", "A man is rock climbing."),
    ("A boy wearing a red hat playing ball.", "A boy wearing a red hat is playing ball."),
    ("A boy wearing black walks down a street.", "A boy wearing black walks down a street."),
    ("A cat lies on a bed.", "A cat lies on a bed."),
    ("Kids play in the snow.", "Kids play in the snow."),
    ("A young man contemplates his pitch.", None),  # a verb that no list has
    ("A skier in red skis down a slope.", "A skier in red skis down a slope."),
    ("A boat battling through rough waves.", "A boat is battling through rough waves."),
    ("A man, a girl and a boy sit there.", None),
    ("View of the city.", None),
])  # fmt: skip
def test_captions_become_sentences(caption, text):
    assert whole(caption) == text


def test_sentences_refer_back():
    assert refer_back("A little girl climbs.", ["A child plays."]) == "The little girl climbs."
    assert refer_back("Two dogs play.", ["Two dogs run."]) == "The two dogs play."
    assert refer_back("A dog barks.", ["Two dogs run."]) == "A dog barks."
    assert refer_back("There is a man in a hat.", ["A man walks."]) == "The man is in a hat."
    assert refer_back("There is a man with a hat.", ["A man walks."]) is None  # would be another man
    assert introduce("The small boy runs.") == "A small boy runs."
    assert introduce("The two dogs run.") == "Two dogs run."
    assert introduce("The red haired girl runs.") == "A red haired girl runs."
    assert introduce("The back of a dog is wet.") == "The back of a dog is wet."


# ---------------------------------------------------------------------- the whole


def test_what_is_backed_stays_and_captions_add():
    captions = [
        "A black dog runs through shallow water.",
        "A dog with a stick in its mouth is running.",
        "A wet black dog carrying a stick at the shore.",
        "The dog runs.",
    ]
    done = repair("A black dog is running in water. The dog is chasing a duck.", captions)
    assert dict(done.sentences) == {"A black dog is running in water.": "", "The dog is chasing a duck.": "unsupported"}
    assert done.text == " ".join(["A black dog is running in water.", *done.added])
    assert "duck" not in done.text and "stick" in done.text and done.lost == ""
    assert all(sentence.startswith("The ") for sentence in done.added)


def test_a_sentence_that_captions_do_not_hold_as_one_stays():
    captions = [
        "A man rides a brown horse by a sandy sea.",
        "A man on a horse.",
        "Somebody on a brown horse by the sea.",
    ]
    done = repair("A man on a brown horse.", captions)
    assert reasons("A man on a brown horse.", captions)["A man on a brown horse."] == "said by a caption"
    done = repair("A person on a brown horse on a beach.", ["A man on a brown horse.", "A horse on a beach with sand."])
    assert done.sentences[0][1] == "" and done.text.startswith("A person on a brown horse on a beach.")


def test_a_sentence_is_cut_down_to_what_is_backed():
    captions = ["A boy is running on a beach.", "The boy runs near the sea.", "A boy in red shorts outside."]
    done = repair("A boy in a blue shirt is running on a beach with a dog.", captions)
    assert done.sentences == [
        ("A boy in a blue shirt is running on a beach with a dog.", "cut down"), ("A boy is running on a beach.", "")
    ]  # fmt: skip
    assert done.text.startswith("A boy is running on a beach.") and "blue" not in done.text and "dog" not in done.text
    assert shortened("A man sits.") == []
    assert shortened("There is a girl wearing a red and blue top.") == ["There is a girl."]  # not "wearing a red"
    assert shortened("A man is sitting in a park with a dog.") == [
        "A man is sitting with a dog.", "A man is sitting in a park."
    ]  # fmt: skip
    assert shortened("There is a girl in blue shorts and a white shirt and a hat.") == [
        "There is a girl in blue shorts and a white shirt.", "There is a girl in blue shorts.", "There is a girl."
    ]  # fmt: skip


def test_the_majority_is_believed():
    captions = ["A man walks a dog.", "A man with a dog.", "A man and his dog outside.", "A woman walks in a park."]
    assert reasons("A woman walks.", captions)["A woman walks."] in {"contradicted", "unsupported"}
    assert "woman" not in repair("", captions).text
    two = ["Two dogs run.", "Three dogs run on grass.", "Two dogs run on green grass.", "Two dogs."]
    assert "hree" not in repair("", two).text


def test_photos_are_dropped():
    apart = repair("A cat.", ["A boat at sea.", "Fried eggs for breakfast.", "Children dance."])
    assert (apart.text, apart.lost, apart.sentences) == ("", "captions disagree", [("A cat.", "photo dropped")])
    assert repair("A cat.", []).lost == repair("A cat.", ["!!", "the"]).lost == "no human text"
    assert repair("### \ufffd", [], checked=False).lost == "nothing left"


def test_a_label_is_one_sentence():
    done = repair("A beaver is swimming. This is a beaver.", ["a photo of a beaver"])
    assert done.text == "This is a photo of a beaver."
    assert [why for _, why in done.sentences] == ["unsupported", "said by a caption"]


def test_as_the_paper_only_form_counts():
    done = repair("A cat flies over Rome. A cat flies over Rome. I apologize for that.", [], checked=False)
    assert done.text == "A cat flies over Rome." and done.added == []


def test_added_captions_are_few_and_new():
    captions = [f"A man {verb} a {thing} near the {place}." for verb, thing, place in [
        ("holds", "fish", "lake"), ("wears", "hat", "tree"), ("carries", "rod", "boat"), ("eats", "apple", "tent"),
        ("drinks", "tea", "fire"), ("reads", "book", "car")]]  # fmt: skip
    done = repair("", captions)
    assert len(done.added) == rules.MOST and len(set(done.added)) == rules.MOST
    alike = ["A dog runs on grass.", "The dog runs on the grass.", "A dog is running in grass."]
    assert len(repair("", alike).added) == 1


# ---------------------------------------------------------------------- the second turn


@pytest.mark.parametrize("template", [CHATML, VICUNA_V0], ids=lambda t: t.name)
def test_a_second_turn_reads_as_two_turns_do(template):
    wanted = ChatState(template, [Turn("What?", ["image"], "A dog."), Turn("Continue")])
    got = ChatState(template, [Turn(second_question(template, "What?", "A dog.", "Continue"), ["image"])])
    assert got.segments() == wanted.segments()


def test_answers_are_joined():
    assert Description("A dog", "It runs.").text == "A dog. It runs."
    assert Description("A dog", "runs.", cut=True).text == "A dog runs."
    assert Description("A dog.", None).text == Description("A dog.", "").text == "A dog."
