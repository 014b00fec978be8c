"""A judge behind an OpenAI-compatible endpoint: optional. Questions, model and raw answers stay in judged.jsonl."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from .captions import MissingLibrary


class JudgeError(UserError):
    """A judge that cannot be asked."""


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
        again.

        Raises:
            MissingLibrary, JudgeError: no client; the endpoint does not answer.
        """
        try:
            import openai
        except ImportError:
            raise MissingLibrary("--judge needs the openai package: pip install -e '.[eval]'") from None
        client = openai.OpenAI(base_url=self.url, api_key=os.environ.get(self.key_env) or "none", max_retries=3)
        known = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    known[entry["key"]] = entry["raw"]
                except (ValueError, KeyError, TypeError):
                    continue  # cut when the process was killed
        raws = []
        with file.open("a", encoding="utf-8") as out:
            out.write("\n" if out.tell() else "")
            for text, picture in questions:
                image = "" if picture is None else base64.b64encode(picture.read_bytes()).decode()
                key = hashlib.sha256(f"{self.model}\n{text}\n{image}".encode()).hexdigest()[:20]
                if key not in known:
                    known[key] = self._raw(client, openai.OpenAIError, text, image)
                    line = {"key": key, "model": self.model, "url": self.url, "prompt": text,
                            "picture": str(picture or ""), "raw": known[key]}  # fmt: skip
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
                    out.flush()
                raws.append(known[key])
        return raws

    def _raw(self, client, errors, text: str, image: str) -> str:
        content: str | list = text
        if image:
            url = f"data:image/jpeg;base64,{image}"
            content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
        try:
            reply = client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": content}], temperature=0
            )
            return reply.choices[0].message.content or ""
        except errors as error:
            raise JudgeError(
                f"--judge {self.url}: {error}; what was judged so far is kept, the same command goes on"
            ) from None


def yes_or_no(raw: str) -> bool | None:
    word = re.match(r"\W*(yes|no)\b", raw, re.IGNORECASE)
    return None if word is None else word[1].lower() == "yes"
