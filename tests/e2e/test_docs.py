"""The docs are tried: every config that they print loads."""

import os
import re
import subprocess
import sys

from minigpt4.common.config import PROJECT


def blocks(kind: str, pages=("*.md", "docs/*.md", "dataset/*.md")) -> list[tuple[str, str]]:
    """(page, text) of every block of this kind in the docs."""
    files = [file for page in pages for file in sorted(PROJECT.glob(page))]
    return [(file.name, text) for file in files for text in re.findall(rf"```{kind}\n(.*?)```", file.read_text(), re.S)]


def test_every_config_of_the_docs_loads_as_printed(tmp_path):
    """Without the files that they name as your own, and the weights that a command fetches."""
    (tmp_path / "pets.csv").touch()
    (tmp_path / "my_photos").mkdir()
    (tmp_path / "my_photos/photos.jsonl").touch()
    (tmp_path / "my_parts.py").write_text("\n".join(code for page, code in blocks("python") if page == "extending.md"))
    for folder in ("train_configs", "eval_configs"):
        (tmp_path / folder).symlink_to(PROJECT / folder)
    files = [f"{number}-{page}.yaml" for number, (page, _) in enumerate(blocks("yaml"))]
    for file, (_, text) in zip(files, blocks("yaml"), strict=True):
        (tmp_path / file).write_text(text)
    assert any("extending" in file for file in files) and any("training" in file for file in files)
    (tmp_path / "main.py").write_text("""
import sys
from minigpt4.common.config import read_config
from minigpt4 import conversation, tasks, runners
for file in sys.argv[1:]:
    mode = "train" if "run:" in open(file).read() else "show"  # others are parts of one
    print(*(f"{file}: {problem}" for problem in read_config(file, mode=mode)[1]), sep="\\n")
""")
    said = subprocess.run(  # what they register stays in a process of its own
        [sys.executable, "main.py", *files], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)}, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert [line for line in said.split("\n") if line and not line.endswith("`minigpt4 weights` makes it")] == []
