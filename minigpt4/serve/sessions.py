"""Who is talking: one session for each open page."""

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Event, Lock

from ..conversation.chat import Chat
from ..conversation.prompts import ChatState


@dataclass
class Session:
    """What one open page has: its conversation, and the picture that was last sent with a question."""

    conv: ChatState
    number: int  # tells it from an earlier session of the same page, before Restart
    image: str | None = None
    stop: Event = field(default_factory=Event)
    busy: bool = False
    closed: bool = False
    asked: int = 0


class Sessions:
    """Sessions by the name of the page (gradio's session hash).

    gr.State could hold them too, but would copy the first value, and keep it for an hour after the page closed.
    """

    def __init__(self, chat: Chat, limit: int = 64):
        self.chat, self.limit = chat, limit
        self._open: OrderedDict[str | None, Session] = OrderedDict()
        self._lock = Lock()
        self._count = 0

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str | None) -> Session:
        """The page's session, a new one if need be. Programs never say goodbye: the longest unused gives way."""
        with self._lock:
            if name not in self._open:
                self._count += 1
                self._open[name] = Session(self.chat.new_conversation(), self._count)
            self._open.move_to_end(name)
            session, extra = self._open[name], list(self._open)[: -self.limit]
        for old in extra:
            self.close(old)
        return session

    def close(self, name: str | None) -> None:
        """End the session, and what is being written in it."""
        with self._lock:
            session = self._open.pop(name, None)
        if session:
            session.closed = True
            session.stop.set()
