"""A judge behind an OpenAI-compatible endpoint: optional. Questions, model and raw answers stay in judged.jsonl."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..common.errors import UserError
from ..common.packages import require_packages
from ..processors.image_processors import decode_image
from .answering import digest, keep, read_kept


@dataclass(frozen=True)
class Judge:
    """Where and whom to ask. The key is read from the environment variable `key_env`; local servers need none."""

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"

    def ask(self, questions: Sequence[tuple[str, Path | None]], file: Path) -> list[bool | None]:
        """Yes or no to each question, as `replies` gets them; None where the judge said neither."""
        return [yes_or_no(raw) for raw in self.replies(questions, file)]

    def replies(self, questions: Sequence[tuple[str, Path | None]], file: Path) -> list[str]:
        """The raw answer to each question (with a picture, or None). What `file` holds of an earlier run is not asked
        again. Raises UserError: no client; the endpoint does not answer, or not as OpenAI's does."""
        require_packages("--judge", "eval", "openai")
        import openai

        client = openai.OpenAI(base_url=self.url, api_key=os.environ.get(self.key_env) or "none", max_retries=3)
        known = read_kept([file] if file.is_file() else [])
        raws = []
        for text, picture in questions:
            content: str | list = text
            if picture:
                url = data_uri(decode_image(picture.read_bytes(), picture))
                content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
            key = digest([self.model, content])[:20]
            if key not in known:
                messages = [{"role": "user", "content": content}]
                try:
                    reply = client.chat.completions.create(model=self.model, messages=messages, temperature=0)
                    raw = reply.choices[0].message.content or ""
                # ValueError and those after it: what came is not JSON, or has no choices
                except (openai.OpenAIError, ValueError, AttributeError, IndexError, TypeError) as error:
                    raise UserError(
                        f"--judge {self.url}: no answer as OpenAI's API gives it (its URL usually ends in /v1): "
                        f"{error}; what was judged so far is kept, the same command goes on"
                    ) from None
                known[key] = {"model": self.model, "prompt": text, "picture": str(picture or ""), "raw": raw}
                keep([{"key": key, **known[key]}], file)
            raws.append(known[key]["raw"])
        return raws


def data_uri(image: Image.Image, quality: int = 95) -> str:
    """An image as a JPEG in a data: URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def yes_or_no(raw: str) -> bool | None:
    word = re.match(r"\W*(yes|no)\b", raw, re.IGNORECASE)
    return None if word is None else word[1].lower() == "yes"
