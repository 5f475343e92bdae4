"""What does Postgres refuse from now on? As it does where something of a row is broken, or too large."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

OF_SEVEN = "(SELECT n FROM jobs WHERE id = NEW.job_id) = 7"  # what belongs to a job with n = 7


async def refuse_when(engine: AsyncEngine, table: str, doing: str, when: str, *, sqlstate: str = "22P05") -> None:
    """Refuse `doing` (INSERT or UPDATE) to the rows of `table` for which `when` holds, by a trigger `refuse`."""
    refuse = f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF {when} THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW; END $$"""
    async with engine.begin() as conn:
        await conn.execute(text(refuse))
        await conn.execute(
            text(f"CREATE TRIGGER refuse BEFORE {doing} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
        )
