"""Does the policy of /docs let its scripts go where they must, and nowhere else, whatever Host says?"""

import re

import pytest

from app.api.reference import csp


def test_scripts_of_the_page_talk_to_the_api_and_not_to_the_dashboard() -> None:
    policy = dict(re.findall(r"([a-z-]+) ([^;]*)", csp("penstock.test:8000")))
    assert policy["connect-src"] == "penstock.test:8000/v1/ penstock.test:8000/openapi.json"
    assert policy["script-src"] == policy["style-src"] == "penstock.test:8000/admin/static/"
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert set(policy["sandbox"].split()) == {"allow-scripts", "allow-same-origin"}


@pytest.mark.parametrize(
    "host", ["", "[::1]:8000", "a.test; script-src *", "a.test b.test", "*", "a.test/x", "a\r\nb", "u@a.test"]
)
def test_a_host_that_cannot_stand_there_opens_nothing(host: str) -> None:
    policy = csp(host)
    assert "connect-src 'none'" in policy
    assert "*" not in policy
    assert host == "" or host not in policy
