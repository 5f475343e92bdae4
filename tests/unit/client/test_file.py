"""Can the client be taken away? One file that needs httpx and the standard library only."""

import ast
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import app.client
from app.client import AsyncPenstock, Penstock

FILE = Path(app.client.__file__)


def test_it_imports_httpx_and_the_standard_library_only() -> None:
    imported = set()
    for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"httpx"}


def test_a_copy_works_elsewhere(tmp_path: Path) -> None:
    shutil.copy(FILE, tmp_path / "penstock_client.py")
    script = "import penstock_client as p; print(p.Penstock('http://x', 'pk').submit.__name__, 'app' in __import__('sys').modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("submit False\n", "")


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    def face(cls: type) -> dict[str, list[str]]:
        return {
            name: [f"{each.name}={each.default!r}" for each in inspect.signature(member).parameters.values()]
            for name, member in vars(cls).items()
            if callable(member) and not name.startswith("_")
        }

    assert face(Penstock) == face(AsyncPenstock)
    assert len(face(Penstock)) > 12
