"""Are the revisions that are read from the migrations' lines Alembic's own?"""

from alembic.script import ScriptDirectory

from app.revisions import head_revision, known_revisions
from app.schema import alembic_config


def test_they_are_alembics() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert head_revision() == scripts.get_current_head()
    assert known_revisions() == {script.revision for script in scripts.walk_revisions()}
