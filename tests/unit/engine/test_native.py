"""The C++ kernels: found, or done without."""

import logging

import pytest
import torch

from workers.engine import native
from workers.engine.sampler import torch_forbid


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


def test_forbidding_by_a_packed_mask_is_the_same_in_cpp_and_torch():
    kernels = native.kernels()
    if kernels is None:
        pytest.skip("no compiler")
    generator = torch.Generator().manual_seed(1)
    for columns in (32, 300, 2048):
        logits = torch.randn(7, columns, generator=generator)
        words = torch.randint(-(2**31), 2**31, (3, -(-columns // 32)), generator=generator).to(torch.int32)
        words[1, 0], words[2, 0] = -1, 0
        for rows in ([0, 3, 6], [2, 5, 1]):
            ours, plain = logits.clone(), logits.clone()
            kernels.forbid(ours, rows, words)
            torch_forbid(plain, rows, words)
            assert torch.equal(ours, plain)
            allowed = [
                [bool(words[place, token // 32] >> (token % 32) & 1) for token in range(columns)] for place in range(3)
            ]
            assert torch.equal(ours[rows].isfinite(), torch.tensor(allowed))
            others = [row for row in range(7) if row not in rows]
            assert torch.equal(ours[others], logits[others])
