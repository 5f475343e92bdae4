"""Does the gate's estimate of a job's size follow what prompts really come to?"""

import pytest

from app.jobs.admission import Density, size_of
from app.jobs.request import JobRequest
from app.settings import Settings


def request(prompt: str | list[int], **more: object) -> JobRequest:
    return JobRequest.model_validate({"prompt": prompt, "max_tokens": 10, **more})


def test_a_models_own_figure_replaces_the_usual_one() -> None:
    density = Density()
    assert density.of("tiny") == 0.25
    density.learn("tiny", num_chars=50, num_tokens=50)
    assert density.of("tiny") == 1.0
    assert density.of("other") == 0.25
    for _ in range(400):
        density.learn("tiny", num_chars=100, num_tokens=30)
    assert density.of("tiny") == pytest.approx(0.3, rel=0.01)


def test_a_prompt_of_token_ids_teaches_nothing_and_is_counted_as_it_is() -> None:
    density = Density()
    density.learn("tiny", num_chars=0, num_tokens=99)
    assert density.of("tiny") == 0.25
    assert size_of(request([1] * 40, n=2), Settings(), tokens_per_char=9.0) == 1 + 40 + 20
    assert size_of(request("x" * 100), Settings(), tokens_per_char=0.5) == 1 + 50 + 10
