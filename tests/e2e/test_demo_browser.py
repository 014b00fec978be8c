"""The page in headless Chromium: upload, ask, a streamed answer, stop, restart, errors, two people at once."""

import re
import shutil
import time
from itertools import cycle, pairwise
from urllib.parse import urlparse

import pytest
from PIL import Image

from minigpt4.conversation.chat import Chat, ChatError
from minigpt4.processors.image_processors import Blip2ImageEval
from minigpt4.serve.app import build_app, launch

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
SECONDS_PER_TOKEN = 0.05
TOKENS = 30


@pytest.fixture(scope="module")
def app(tiny_model):
    """The page on a model that takes its time, and says `a dog a dog ...` without end."""
    words = cycle(tiny_model.tokenizer.convert_tokens_to_ids(["▁a", "▁d", "o", "g"]))

    def slow_and_endless(module, args, output):
        time.sleep(SECONDS_PER_TOKEN)
        output.logits.fill_(-1e9)
        output.logits[..., next(words)] = 0

    hook = tiny_model.llama_model.register_forward_hook(slow_and_endless)
    app = build_app(Chat(tiny_model, Blip2ImageEval(image_size=56)), subtitle="a tiny model", max_new_tokens=TOKENS)
    app.address = launch(app, block=False)
    yield app
    app.close()
    hook.remove()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(app, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.set_default_timeout(20_000)
    page.hosts, page.faults = set(), []
    page.on("request", lambda request: page.hosts.add(urlparse(request.url).netloc))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(app.address)
    page.wait_for_selector("#question textarea")
    yield page
    page.close()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((120, 80), 90).save(path)
    return path


def upload(page, path):
    page.set_input_files("#image input[type=file]", path)


def ask(page, text):
    page.fill("#question textarea", text)
    page.press("#question textarea", "Enter")


def answers(page) -> list[str]:
    """The model's messages, without the dots that wait for one."""
    return page.locator("#chat [data-testid='bot']").all_inner_texts()


def wait_for(condition, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def idle(page) -> bool:
    return page.locator("#stop").is_disabled() and page.locator("#send").is_enabled()


def test_a_conversation(app, page, photo, tmp_path):
    upload(page, photo)
    page.wait_for_selector("#image img")
    ask(page, "Describe this image in detail.")
    page.wait_for_selector("#chat img")
    seen = []
    while not seen or not idle(page):
        seen += [text for text in answers(page) if text and text not in seen]
        time.sleep(0.02)
    assert len(seen) >= 5 and all(b.startswith(a) for a, b in pairwise(seen)), seen
    (session,) = app.page.sessions.values()
    assert len(session.conv.turns) == 1 and len(session.conv.turns[0].images) == 1
    assert session.conv.turns[0].question == "Describe this image in detail."

    page.locator("#examples button").nth(2).click()  # a ready-made question; the image is not sent again
    wait_for(lambda: len(answers(page)) == 2 and len(answers(page)[1]) > 5)
    assert session.conv.turns[1].images == []
    page.click("#stop")
    wait_for(lambda: idle(page))
    cut = session.conv.turns[1].answer
    assert answers(page)[1] == cut and len(cut) < len(seen[-1])
    steps = app.page.chat.cache._cache.get_seq_length()
    time.sleep(5 * SECONDS_PER_TOKEN)
    assert app.page.chat.cache._cache.get_seq_length() == steps, "the model runs on after Stop"
    assert session.conv.turns[1].answer == cut and page.locator("#chat .user.message img").count() == 1

    second = tmp_path / "second.png"
    Image.new("RGB", (50, 50), "red").save(second)
    page.click("#image [aria-label='Remove Image'], #image [aria-label='Clear']")
    upload(page, second)
    page.fill("#beams input[type=number]", "2")
    page.press("#beams input[type=number]", "Tab")
    ask(page, "And this one?")
    wait_for(lambda: len(session.conv.turns) == 3 and session.conv.turns[2].answer is not None and idle(page))
    assert len(session.conv.turns[2].images) == 1 and page.locator("#chat .user.message img").count() == 2

    assert page.hosts == {urlparse(app.address).netloc}, "the page loads something from elsewhere"
    assert page.faults == []
    page.screenshot(path=tmp_path / "page.png")


def test_restart_in_the_middle(app, page, photo):
    upload(page, photo)
    page.wait_for_selector("#image img")
    ask(page, "Hello?")
    wait_for(lambda: answers(page) and len(answers(page)[0]) > 3)
    (session,) = app.page.sessions.values()
    page.click("#restart")
    wait_for(lambda: page.locator("#chat .message").count() == 0 and idle(page))
    time.sleep(10 * SECONDS_PER_TOKEN)
    assert page.locator("#chat .message").count() == 0, "the old conversation came back"
    assert page.locator("#image img").count() == 0 and not app.page.sessions and not session.busy
    upload(page, photo)
    page.wait_for_selector("#image img")
    ask(page, "Again?")
    wait_for(lambda: answers(page) and idle(page))
    (session,) = app.page.sessions.values()
    assert [turn.question for turn in session.conv.turns] == ["Again?"]


def test_problems_are_told(page, photo, tmp_path):
    toast = page.locator(".toast-body")
    ask(page, "What is it?")
    wait_for(lambda: "Upload an image first" in " ".join(toast.all_inner_texts()))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    upload(page, broken)
    wait_for(lambda: "broken.jpg: not an image" in " ".join(toast.all_inner_texts()))
    wait_for(lambda: page.locator("#image img").count() == 0)
    upload(page, photo)
    page.wait_for_selector("#image img")
    too_long = " ".join(["word"] * 500)
    ask(page, too_long)
    wait_for(lambda: re.search("question is too long", " ".join(toast.all_inner_texts())))
    wait_for(lambda: page.locator("#question textarea").input_value() == too_long and idle(page))
    assert page.locator("#chat .message").count() == 0
    ask(page, "What is it?")
    wait_for(lambda: answers(page) and idle(page))


MARKUP = (
    "What does a*b*c mean in __init__?\n<script>alert(1)</script> <Img>1 &lt; 2</Img> <think>\n"
    "    ![x](http://example.invalid/a.png) <img src=http://example.invalid/b.png> [c](http://example.invalid)\n"
    "```python\n    print('`a`')\n```\n**bold** $x^2$ <style>body {display: none}</style> <!-- end -->"
)


def test_text_is_shown_as_it_was_written(app, page, photo, monkeypatch):
    def say(conv, **_):
        conv.turns[-1].answer = MARKUP
        yield MARKUP

    monkeypatch.setattr(app.page.chat, "stream_answer", say)
    upload(page, photo)
    page.wait_for_selector("#image img")
    ask(page, MARKUP)
    wait_for(lambda: answers(page) and idle(page))
    assert answers(page) == [MARKUP]
    assert page.locator("#chat [data-testid='user']").last.inner_text() == MARKUP
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#chat [aria-label^='Copy']").last.click()
    wait_for(lambda: page.evaluate("navigator.clipboard.readText()") == MARKUP)

    def fail(*_, **__):
        raise ChatError(MARKUP)

    monkeypatch.setattr(app.page.chat, "stream_answer", fail)
    ask(page, "Again?")
    wait_for(lambda: MARKUP.split("\n")[1] in " ".join(page.locator(".toast-body").all_inner_texts()))
    wait_for(lambda: page.locator("#question textarea").input_value() == "Again?" and idle(page))
    assert page.hosts == {urlparse(app.address).netloc}, "the page loads something from elsewhere"
    assert page.faults == []


def test_two_people(app, browser, page, photo):
    other = browser.new_page()
    other.goto(app.address)
    other.wait_for_selector("#question textarea")
    for who, question in ((page, "first?"), (other, "second?")):
        upload(who, photo)
        who.wait_for_selector("#image img")
        ask(who, question)
    for who in (page, other):
        wait_for(lambda who=who: answers(who) and idle(who))
    sessions = list(app.page.sessions.values())
    assert [[turn.question for turn in s.conv.turns] for s in sessions] == [["first?"], ["second?"]]
    assert "second?" not in page.inner_text("#chat") and "first?" not in other.inner_text("#chat")
    ask(other, "third?")
    wait_for(lambda: len(sessions[1].conv.turns) == 2)
    other.close()  # in the middle of an answer: the model must not go on for nobody
    wait_for(lambda: len(app.page.sessions) == 1 and not sessions[1].busy)
    assert list(app.page.sessions.values()) == sessions[:1]
