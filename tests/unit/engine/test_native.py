"""The C++ kernels: found, or done without."""

import logging

import pytest
import torch

from workers.engine import native


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.kernels.cache_clear()
    yield monkeypatch
    native.kernels.cache_clear()


def test_without_a_compiler_the_engine_goes_on_and_says_so(fresh, caplog):
    fresh.delenv("CXX", raising=False)
    fresh.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        assert native.kernels() is None
    assert "there is no C++ compiler" in caplog.text


def test_a_compiler_that_fails_is_a_warning_with_its_words(fresh, caplog, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such header" >&2\nexit 1\n')
    compiler.chmod(0o755)
    fresh.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING):
        assert native.kernels() is None
    assert "no such header" in caplog.text
    assert not list((tmp_path / "penstock" / "kernels").iterdir())


@pytest.mark.skipif(native.kernels() is None, reason="there is no C++ compiler")
def test_argmax_is_the_first_of_the_highest():
    kernels = native.kernels()
    scores = torch.randn(33, 5000, generator=torch.Generator().manual_seed(1))
    scores[3, [17, 1024, 4999]] = 9.0
    scores[4] = float("-inf")
    scores[5, 4999] = 9.0
    best = kernels.argmax(scores)
    assert best[3:6].tolist() == [17, 0, 4999]
    rest = [row for row in range(33) if row not in {3, 4}]
    assert torch.equal(best[rest], scores.argmax(dim=-1)[rest])
