"""Errors of the operating system in one sentence that states what to do."""

from __future__ import annotations

import errno
import os

import pytest

from oneshui_hf.errors import describe_os_error, find_os_error, is_disk_full, is_machine_error

FILE = "/data/x"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "There is no permission to read or write /data/x; change its permissions"),
        (errno.EPERM, "There is no permission to read or write /data/x; change its permissions"),
        (errno.ENOSPC, "There is no space left on the device (/data/x); free some, then continue with --resume."),
        (errno.EDQUOT, "Your disk quota is used up (/data/x); free some space, then continue with --resume."),
        (errno.EROFS, "The file system of /data/x can only be read; name another place."),
        (errno.EMFILE, "Too many files are open (/data/x); allow more with `ulimit -n`, then continue with --resume."),
        (errno.ENFILE, "Too many files are open (/data/x); allow more with `ulimit -n`, then continue with --resume."),
        (errno.ENAMETOOLONG, "The name of /data/x is too long for its file system; name a shorter one."),
        (errno.ENOMEM, "There is not enough memory (/data/x); free some, then continue with --resume."),
        (errno.EIO, "The operating system reports: Input/output error (/data/x)."),
        (errno.ENODEV, "The operating system reports: No such device (/data/x)."),
    ],
)
def test_the_sentence_states_what_is_wrong_where_and_what_to_do(number: int, words: str) -> None:
    error = OSError(number, os.strerror(number), FILE)
    assert describe_os_error(error, "continue with --resume").startswith(words)
    assert is_machine_error(error) == (number not in (errno.ENAMETOOLONG,))


def test_the_file_is_found_in_the_text_of_pyarrow() -> None:
    error = OSError(errno.EACCES, "Failed to open local file '/cache/a.arrow'. Detail: [errno 13] Permission denied")
    assert "/cache/a.arrow" in describe_os_error(error)


def test_an_error_that_a_library_has_wrapped_is_found() -> None:
    class SafetensorError(Exception):
        pass

    assert is_disk_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(SafetensorError("HeaderTooLarge"))
    assert find_os_error(ValueError("no space")) is None
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", FILE)
        except OSError as cause:
            raise RuntimeError("An error occurred while generating the dataset") from cause
    except RuntimeError as error:
        assert is_disk_full(error)
        assert find_os_error(error).filename == FILE  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "x"), IsADirectoryError(errno.EISDIR, "x"), OSError("x"), ValueError("x")]
)
def test_a_missing_or_wrong_file_is_no_fault_of_the_machine(error: Exception) -> None:
    assert not is_machine_error(error)
