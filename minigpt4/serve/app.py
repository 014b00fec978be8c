"""The chat page: an image on the left, the conversation on the right. By default only this machine can open it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import count
from pathlib import Path
from threading import Event

from .start import GRADIO, find_address, prepare_uploads

os.environ |= GRADIO  # read when gradio is imported
import gradio as gr
from gradio.utils import get_upload_folder

from ..common.errors import UserError
from ..common.paths import whole_file
from ..conversation.chat import Chat, ChatError, ImageError, read_image
from ..conversation.prompts import EXAMPLE_QUESTIONS, ChatState

log = logging.getLogger("minigpt4")
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]


@dataclass
class Session:
    """What one open page has."""

    conv: ChatState
    image: str | None = None  # the last one that was sent with a question
    stop: Event = field(default_factory=Event)
    busy: bool = False
    asked: int = 0  # number of the last question


class Page:
    """What the buttons do. Outputs are in the order that `build_app` wires them."""

    def __init__(self, chat: Chat, max_new_tokens: int):
        self.chat, self.max_new_tokens = chat, max_new_tokens
        # By gradio's session hash. gr.State would copy the first value, and keep it for an hour after the page closed.
        self.sessions: dict[str, Session] = {}
        self.numbers = count(1)  # of questions

    def session_of(self, request: gr.Request) -> Session:
        return self.sessions.setdefault(request.session_hash, Session(self.chat.new_conversation()))

    def check_image(self, upload: dict | None):
        """After an upload -> the image box: emptied at once, with a reason, when the file is no picture. `upload` is
        what the browser sent: gradio's own reading would fail without a reason."""
        path = Path(upload["path"]).resolve() if upload else None
        if path and path.is_relative_to(Path(get_upload_folder()).resolve()):
            try:
                read_image(path)
            except ImageError as error:
                warn(error, path)
                return None
        return gr.skip()

    def take(self, question: str, path: str | None, history: list, request: gr.Request):
        """Show a question at once, before the model is free -> (question box, history, send, stop, asked). `asked`, a
        number and the question, sets off `respond`; nothing changes on a refusal."""
        session, question = self.session_of(request), question.strip()
        try:
            if session.busy:
                raise ChatError("The last answer is still being written: wait for it, or press Stop.")
            self.chat.check_question(question)
            if path is None and not session.conv.turns:
                raise ChatError("Upload an image first, then ask about it.")
            content = [verbatim(question)]
            if path and path != session.image:
                content.insert(0, {"path": thumbnail(path), "alt_text": "the uploaded image"})
        except ChatError as error:
            warn(error, path)
            return [gr.skip()] * 5
        session.busy, session.asked = True, next(self.numbers)
        session.stop.clear()
        history = [*history, {"role": "user", "content": content}]
        return "", history, gr.update(interactive=False), gr.update(interactive=True), (session.asked, question)

    def respond(
        self, asked: tuple[int, str], path: str | None, history: list, beams: int, temperature: float,
        request: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        """Answer, as a stream of (history, question box)."""
        session, (number, question) = self.session_of(request), asked
        # Gradio shows the last thing yielded once more at the end: after Restart that must be an empty page.
        if session.asked != number:
            yield [], gr.skip()
            return
        try:
            if path and path != session.image:
                self.chat.upload_img(path, session.conv)
                session.image = path
            self.chat.ask(question, session.conv)
            for text in self.chat.stream_answer(
                session.conv, stop=session.stop, max_new_tokens=self.max_new_tokens, num_beams=int(beams),
                temperature=float(temperature),
            ):  # fmt: skip
                if self.sessions.get(request.session_hash) is not session:
                    yield [], gr.skip()
                    return
                content = [verbatim(text or "(The model gave an empty answer.)")]
                yield [*history, {"role": "assistant", "content": content}], gr.skip()
            for notice in session.conv.notices:
                gr.Info(escape(notice))
        except Exception as error:
            if not isinstance(error, UserError):
                log.exception("the question could not be answered")
            session.conv.take_back()
            warn(error, path)
            yield history[:-1], question  # back into the box, so that it can be corrected
        finally:
            session.busy = False

    def ready(self):
        """For (send, stop): another question may come."""
        return gr.update(interactive=True), gr.update(interactive=False)

    def stop(self, request: gr.Request) -> None:
        self.session_of(request).stop.set()

    def restart(self, request: gr.Request):
        """A new conversation -> (image, history, question box, send, stop)."""
        self.leave(request)
        return None, [], "", *self.ready()

    def leave(self, request: gr.Request) -> None:
        """End the session, and what is being written in it."""
        if session := self.sessions.pop(request.session_hash, None):
            session.stop.set()


def thumbnail(path: str, side: int = 480) -> str:
    """A small copy next to an upload: gradio reads and sends it again with every token. Raises ImageError."""
    small = Path(path).with_name(f"{Path(path).stem}_{side}px.jpg")
    if not small.exists():
        image = read_image(path)
        image.thumbnail((side, side))
        with whole_file(small) as part:  # others may upload the same picture now
            image.save(part, "JPEG", quality=90)
    return str(small)


def verbatim(text: str) -> dict:
    """A message that shows `text` as it is. gradio reads every text as HTML, Markdown or not: an image in it would be
    fetched from wherever it says. (Of a plain string it would also take the indentation off.)"""
    return {"type": "text", "text": escape(text, quote=False)}


def warn(error: Exception, path: str | Path | None = None) -> None:
    """Show a message, escaped, since gradio reads it as HTML. Of an upload it shows the name without the folder."""
    text = str(error) or type(error).__name__
    gr.Warning(escape(text.replace(str(path), Path(path).name) if path else text))


def build_app(
    chat: Chat, *, title: str = "MiniGPT-4", subtitle: str = "", max_new_tokens: int = 300,
    questions: Sequence[str] | None = None,
) -> gr.Blocks:  # fmt: skip
    """The page as gradio Blocks; `launch` opens it. `chat` is shared: one question is answered at a time, the others
    wait in gradio's queue. `questions` are offered as buttons (default: EXAMPLE_QUESTIONS)."""
    prepare_uploads()
    page = Page(chat, max_new_tokens)
    # delete_cache: uploads are looked at once an hour, and deleted after a day
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 86400)) as app:
        gr.HTML(f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>", elem_id="header")
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                image = gr.Image(
                    type="filepath", image_mode=None,  # the file as it is, neither converted nor written anew
                    sources=["upload", "clipboard"], placeholder="Drop an image here\nor click to choose one",
                    label="Image", height=340, buttons=["fullscreen"], elem_id="image",
                )  # fmt: skip
                with gr.Accordion("How to answer"):
                    beams = gr.Slider(1, 5, 1, step=1, label="Beams: more are slower", elem_id="beams")
                    label = "Temperature: lower is more deterministic"
                    temperature = gr.Slider(0.1, 2, chat.temperature, step=0.1, label=label, elem_id="temperature")
                restart = gr.Button("Restart", elem_id="restart")
                gr.Markdown("A new image at any time goes with your next question.", elem_id="hint")
            with gr.Column(scale=7, min_width=380):
                history = gr.Chatbot(
                    show_label=False, placeholder="Upload an image, then ask about it.", height=520, buttons=["copy"],
                    feedback_options=None, render_markdown=False, elem_id="chat",
                )  # fmt: skip
                with gr.Row(elem_id="ask-row"):
                    question = gr.Textbox(
                        placeholder="Ask about the image", show_label=False, container=False, scale=8, max_lines=6,
                        autofocus=True, elem_id="question",
                    )  # fmt: skip
                    send = gr.Button("Send", variant="primary", min_width=80, elem_id="send")
                    stop = gr.Button("Stop", variant="stop", min_width=80, elem_id="stop", interactive=False)
                with gr.Row(elem_id="examples"):
                    offered = EXAMPLE_QUESTIONS if questions is None else questions
                    examples = [gr.Button(text, size="sm") for text in offered]
        asked = gr.State()

        # Queued, for gr.Warning speaks through the queue; but not behind the model.
        soon = {"concurrency_limit": None, "show_progress": "hidden"}
        image.upload(page.check_image, image, image, preprocess=False, **soon)
        triggers = [(question.submit, question), (send.click, question), *((b.click, b) for b in examples)]
        for trigger, text in triggers:
            trigger(page.take, [text, image, history], [question, history, send, stop, asked], **soon)
        answering = asked.change(
            page.respond, [asked, image, history, beams, temperature], [history, question], concurrency_limit=1,
            show_progress="minimal",
        )  # fmt: skip
        answering.then(page.ready, None, [send, stop], **soon)
        stop.click(page.stop, **soon)
        restart.click(page.restart, None, [image, history, question, send, stop], **soon)
        app.unload(page.leave)
    app.page = page
    return app.queue(api_open=False)


def launch(
    app: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, share: bool = False, block: bool = True
) -> str:
    """Open the page, until Ctrl-C with `block`, and return its address. Only this machine sees it, unless `host` or
    `share` says otherwise. `port` None takes the first free one from 7860. Raises UserError where it cannot listen."""
    (ip, port), here = find_address(host, port), Path(__file__).parent
    # The page asks itself whether it is up: that must not go through a proxy. With `share`, gradio's servers may.
    direct = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost,127.0.0.1,::1"]
    os.environ["no_proxy"] = ",".join(filter(None, direct)) if share else "*"
    # Plain, in the system's own fonts: the page loads nothing from other hosts.
    theme = gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=FONTS).set(
        block_title_background_fill="none", block_title_padding="0", block_title_text_color="*body_text_color",
        block_label_background_fill="*neutral_100", block_label_text_color="*neutral_700",
        block_shadow="*shadow_drop",
    )  # fmt: skip
    try:
        _, address, _ = app.launch(
            server_name=f"[{ip}]" if ":" in ip else ip, server_port=port, share=share, theme=theme,
            css_paths=here / "app.css", js=(here / "app.js").read_text(encoding="utf-8"),
            show_error=False,  # it would be read as HTML; the console has it
            run_history=False, max_file_size="64mb", ssr_mode=False, enable_monitoring=False,
            prevent_thread_lock=not block, quiet=not block,
        )  # fmt: skip
    except Exception as error:  # gradio raises any kind for what it finds of ports, proxies and certificates
        raise UserError(f"--host {host} --port {port}: the page cannot open there: {error}") from error
    return address
