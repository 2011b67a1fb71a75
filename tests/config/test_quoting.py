"""Words that a shell reads back."""

import os
import subprocess

import pytest

from fastdarts.config.quoting import join


@pytest.mark.parametrize("word", [b"plain", b"a b", b"it's", "grün".encode(), b"caf\xe9 'x' \\ $y", b"a\nb"])
def test_a_shell_reads_them_back(word: bytes) -> None:
    line = join(["printf", "%s", os.fsdecode(word)])
    line.encode()  # can be printed
    assert subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout == word
