"""Is an API there soon? It imports what it needs only."""

import subprocess
import sys

import pytest

SLOW = {"alembic", "httpx", "authlib", "joserfc"}
CODE = """
import sys
from app.api.main import create_app
from app.settings import Settings
create_app(Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere", **{more}))
print(*{slow} & set(sys.modules))
"""
PROVIDER = {
    "oidc_issuer": "https://id.example", "oidc_client_id": "penstock", "oidc_client_secret": "secret-of-the-client-0123456789",
    "dashboard_url": "https://penstock.example",
}  # fmt: skip


@pytest.mark.parametrize(("more", "expected"), [({}, set()), (PROVIDER, SLOW - {"alembic"})], ids=["alone", "provider"])
def test_it_imports_what_its_settings_need(more: dict[str, str], expected: set[str]) -> None:
    code = CODE.format(more=more, slow=SLOW)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
