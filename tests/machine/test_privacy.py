from pathlib import Path

import pytest

from kvbench.machine.privacy import redact_argument, redact_path


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/anna/kv", "~/kv"),
        ("/home/other/kv", "~/kv"),
        ("/Users/anna/kv", "~/kv"),
        ("/root/kv", "~/kv"),
        ("/mnt/fast/anna/kv", "/mnt/fast/<user>/kv"),
        ("/mnt/fast/annabel/kv", "/mnt/fast/annabel/kv"),
        ("/mnt/fast", "/mnt/fast"),
        ("/home", "/home"),
        ("/", "/"),
    ],
)
def test_paths_name_no_person(monkeypatch: pytest.MonkeyPatch, path: str, shown: str) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("USER", "anna")

    assert redact_path(Path(path)) == shown


def test_a_home_outside_the_usual_places_is_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/net/people/a.b")

    assert redact_path(Path("/net/people/a.b/kv/x")) == "~/kv/x"


def test_a_relative_path_is_shown_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    assert redact_path(Path("kv")) == redact_path(tmp_path / "kv")
    assert redact_path(Path("kv")).endswith("/kv")


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("run", "run"),
        ("nvme.read/*", "nvme.read/*"),
        ("kv/data", "kv/data"),
        ("/home/anna/kv", "~/kv"),
        ("--dir=/home/anna/kv", "--dir=~/kv"),
        ("--dir=kv", "--dir=kv"),
        ("-o", "-o"),
    ],
)
def test_a_command_line_names_no_person(
    monkeypatch: pytest.MonkeyPatch, word: str, shown: str
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")

    assert redact_argument(word) == shown
