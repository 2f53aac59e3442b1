"""Every Python block of the README and the documentation runs as it is printed.

The blocks of one file are one program, in order, run in a fresh process and an empty folder: a reader who types one
after the other has the names of those before. Everything else in the file becomes an empty line, so a traceback names
the line of the document.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .scripted_servers import ScriptedServer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(r"\s*```\s*(\w*)")


def program_of(document: str) -> str:
    """The Python blocks of a Markdown text, each line where it stands in the text."""
    lines, language = [], None
    for line in document.splitlines():
        fence = FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
        lines.append(line if language == "python" and not fence else "")
    return "\n".join(lines)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_python_blocks_of_a_document_run(document, tmp_path):
    script = tmp_path / f"{document.name}.py"
    script.write_text(program_of(document.read_text(encoding="utf-8")), encoding="utf-8")
    command = [sys.executable, "-W", "error", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    with ScriptedServer() as models:
        environment["OLLAMA_BASE_URL"] = models.url
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, f"{document.name}: {run.stderr}{run.stdout}"


def test_a_program_keeps_the_line_numbers_of_its_document():
    document = "# Title\n```python\nx = 1\n```\ntext\n```sh\nmake\n```\n```python\ny = x\n```\n"
    assert program_of(document) == "\n\nx = 1\n\n\n\n\n\n\ny = x\n"
