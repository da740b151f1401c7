"""The documents are tested: commands that they show exist, files that they name are there."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvbench.cli import COMMANDS, app
from kvbench_suites import OPERATIONS, SUITES, find_suite

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?(kvbench .*|make .*)$")
INLINE = re.compile(r"`(kvbench [^`]+|make [a-z]+)`")
GROUPS = ("history", "store", "peer", "peer certs", "trace")  # commands of commands
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def shown_commands() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, re.DOTALL):
            lines = (COMMAND.match(line.split("  #")[0].strip()) for line in block.splitlines())
            found += [(path.name, match[1]) for match in lines if match]
        found += [(path.name, command) for command in INLINE.findall(text)]
    return found


@pytest.mark.parametrize(("document", "command"), shown_commands())
def test_a_command_in_a_document_exists_with_its_options(document: str, command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, document
        return
    if len(words) == 1 or words[1].startswith("-"):
        return
    assert words[1] in {*dict(COMMANDS), *GROUPS}, f"{document}: {command}"
    deep = next((n for n in (2, 1) if " ".join(words[1 : n + 1]) in GROUPS), 0)
    path = words[1 : deep + 2]
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, f"{document}: {command}"
    help_text = result.output
    for word in words[1 + len(path) :]:
        if word.startswith("-"):
            option = word.split("=")[0]
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text), (
                f"{document}: {command}: no option {option}"
            )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_linked_file_is_there(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_readme_names_every_command_and_every_suite() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in (*dict(COMMANDS), *GROUPS):
        assert f"kvbench {name}" in text, name
    for suite in SUITES:
        assert f"`{suite.name}`" in text, suite.name


def test_the_store_in_the_documents_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "store.md", "exec"), {})  # it asserts what it says
    assert (tmp_path / "drive" / "index.sqlite").exists()


def test_the_suite_in_the_documents_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "depth.toml").write_text(example, encoding="utf-8")
    suite = find_suite(str(tmp_path / "depth.toml"))
    assert suite.name == "depth"
    assert OPERATIONS


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert dict(COMMANDS)[name].__doc__
