"""Which endpoint does `penstock batches submit` make a batch for? The one that the lines name."""

import json
from pathlib import Path

import pytest

from app.batches.translate import ENDPOINTS as OF_THE_API
from app.cli.batch_lines import ENDPOINTS, endpoint_of
from app.cli.errors import CommandFailed

CHAT, COMPLETIONS, RESPONSES = ENDPOINTS


def written(folder: Path, *urls: object) -> Path:
    file = folder / "in.jsonl"
    lines = [json.dumps({"custom_id": str(n), "method": "POST", "url": url, "body": {}}) for n, url in enumerate(urls)]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_lines_say_it(tmp_path: Path, endpoint: str) -> None:
    assert endpoint_of(written(tmp_path, endpoint, endpoint, endpoint)) == endpoint
    assert endpoint_of(written(tmp_path, endpoint), endpoint) == endpoint


def test_a_mix_is_refused_with_the_first_line_that_differs(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as refused:
        endpoint_of(written(tmp_path, CHAT, CHAT, COMPLETIONS, RESPONSES))
    assert f"line 3: url is {COMPLETIONS}, and line 1 has {CHAT}" in refused.value.detail


def test_lines_that_dont_fit_the_flag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as refused:
        endpoint_of(written(tmp_path, RESPONSES), COMPLETIONS)
    assert f"line 1: url is {RESPONSES}, and --endpoint says {COMPLETIONS}" in refused.value.detail


@pytest.mark.parametrize("url", ["/v1/embeddings", "chat/completions", 7, ["/v1/responses"], ""])
def test_an_endpoint_that_batches_dont_have_is_refused(tmp_path: Path, url: object) -> None:
    with pytest.raises(CommandFailed, match="line 2: url is"):
        endpoint_of(written(tmp_path, CHAT, url))


def test_lines_that_cant_be_read_are_the_apis_matter(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'\xff\n\n[1]\n{"url": null}\n' + json.dumps({"url": RESPONSES}).encode())
    assert endpoint_of(file) == RESPONSES


def test_no_url_at_all_and_no_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"custom_id": "a"}\n')
    with pytest.raises(CommandFailed, match="no line has a url"):
        endpoint_of(file)
    assert endpoint_of(file, CHAT) == CHAT, "what is missing the API says, for each line"
    with pytest.raises(CommandFailed, match="can't be read"):
        endpoint_of(tmp_path / "absent.jsonl")


def test_the_endpoints_are_those_of_the_api() -> None:
    assert set(ENDPOINTS) == set(OF_THE_API)
