"""A file is there whole, or not at all."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infusion.errors import UserError
from infusion.files import check_writable, whole_file


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "out.png"
    for content in (b"first", b"second"):
        with whole_file(target) as temporary:
            assert temporary.parent == target.parent and temporary.suffix == ".png"
            temporary.write_bytes(content)
        assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["out.png"]


def test_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "out") as temporary:
        temporary.write_text("x")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_file(tmp_path / "link") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "x"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ZeroDivisionError, GeneratorExit])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.write_text("before")
    with pytest.raises(failure), whole_file(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk is full"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_says_why_it_cannot_be_written(tmp_path: Path, failure: Exception, words: str) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / 'out'}: .*{words}"), whole_file(tmp_path / "out"):
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_a_real_limit_on_the_disk(tmp_path: Path) -> None:
    """safetensors writes from Rust and raises its own error: seen through a limit on file size."""
    script = (
        "import numpy, sys; from safetensors.numpy import save_file; from infusion.files import whole_file\n"
        "with whole_file(sys.argv[1]) as temporary: save_file({'a': numpy.zeros(9999)}, temporary)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    target = tmp_path / "out.safetensors"
    command = [sys.executable, "-c", script, str(target)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert f"UserError: Cannot write {target}: the file would be larger than is allowed" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    places: dict[str | Path, str] = {
        tmp_path: "it is a folder",
        f"{tmp_path}/new/": "it is a folder",
        tmp_path / "file" / "out": "is a file, not a folder",
        tmp_path / "pipe": "a device or a pipe",
        tmp_path / ("x" * 300): "name is too long",
    }
    for place, words in places.items():
        with pytest.raises(UserError, match=words):
            check_writable(place)
        with pytest.raises(UserError, match=words), whole_file(place):
            pytest.fail("the block must not run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]

    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=f"no permission to write in {tmp_path}"):
        check_writable(tmp_path / "out")


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("before")
    check_writable(tmp_path / "new" / "out")
    check_writable(tmp_path / "old")
    assert list((tmp_path / "new").iterdir()) == [] and (tmp_path / "old").read_text() == "before"
