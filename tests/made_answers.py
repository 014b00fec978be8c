"""Answers as the doctor's smoke generation may see them. Another process imports this file, so it imports little."""

import os
import signal
import time


def slow():
    yield "start", None
    yield "built", 1
    yield "text", "The pic"
    time.sleep(60)


def failing():
    yield "start", None
    print("libraries print what they like")
    raise ValueError("odd")


def killed():
    yield "start", None
    os.kill(os.getpid(), signal.SIGKILL)
