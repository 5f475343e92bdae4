"""Are the batches whole? Each line with one job at most, counts that add up, and files that hold each custom_id once."""

from app.audit.lives import Check

_NAME = "concat('batch_', replace(b.id::text, '-', ''))"
_ENDED = "('completed', 'expired', 'cancelled')"

BATCHES = [
    Check(
        "batch_line_job",
        "a line of a batch that was submitted has one job, of its batch's tenant, and no other line has that",
        f"""
        SELECT {_NAME} AS subject, concat('a job of ', b.tenant_id, ' for line ', l.number) AS expected,
               coalesce('one of ' || j.tenant_id, 'no job') AS found
        FROM batch_lines l JOIN batches b ON b.id = l.batch_id LEFT JOIN jobs j ON j.id = l.job_id
        WHERE (l.state = 'submitted' AND j.id IS NULL) OR j.tenant_id <> b.tenant_id
        UNION ALL
        SELECT {_NAME}, 'one line for each job', concat(count(*), ' lines with one job')
        FROM batch_lines l JOIN batches b ON b.id = l.batch_id WHERE l.job_id IS NOT NULL
        GROUP BY b.id, l.job_id HAVING count(*) > 1
        """,  # noqa: S608 - constants only
    ),
    Check(
        "batch_counts",
        "a batch counts its lines as they are, and has none without a result when it has ended",
        f"""
        SELECT {_NAME} AS subject, concat(b.total, ' lines, ', b.completed, ' completed, ', b.failed, ' failed') AS expected,
               concat(l.total, ' lines, ', l.completed, ' completed, ', l.failed, ' failed; ', b.status) AS found
        FROM batches b CROSS JOIN LATERAL (
            SELECT count(*) AS total, count(*) FILTER (WHERE state = 'completed') AS completed,
                   count(*) FILTER (WHERE state = 'failed') AS failed
            FROM batch_lines WHERE batch_id = b.id) l
        WHERE (b.total, b.completed, b.failed) <> (l.total, l.completed, l.failed)
           OR (b.status IN {_ENDED} AND l.completed + l.failed <> l.total)
        """,  # noqa: S608 - constants only
    ),
    Check(
        "batch_files",
        "an ended batch's files, as long as they are kept, hold each custom_id of its lines once",
        f"""
        SELECT {_NAME} AS subject, concat(coalesce(t.wanted, 0), ' times ', left(t.custom_id, 64)) AS expected,
               concat(coalesce(t.held, 0), ' times') AS found
        FROM batches b CROSS JOIN LATERAL (
            SELECT custom_id, w.times AS wanted, h.times AS held
            FROM (SELECT custom_id, count(*) AS times FROM batch_lines WHERE batch_id = b.id GROUP BY custom_id) w
            FULL JOIN (
                -- An answer may hold U+0000, which no `->>` takes.
                SELECT regexp_replace(line, '(?<!\\\\)((?:\\\\\\\\)*)\\\\u0000', '\\1?', 'g')::json ->> 'custom_id' AS custom_id, count(*) AS times
                FROM file_pieces p CROSS JOIN LATERAL string_to_table(convert_from(p.data, 'UTF8'), E'\\n') AS line
                WHERE p.file_id IN (b.output_file_id, b.error_file_id) AND line <> ''
                GROUP BY 1) h USING (custom_id)) t
        WHERE b.status IN {_ENDED} AND t.wanted IS DISTINCT FROM t.held
          AND (SELECT count(*) FROM files f WHERE f.id IN (b.output_file_id, b.error_file_id))
            = num_nonnulls(b.output_file_id, b.error_file_id)
        """,  # noqa: S608 - constants only
    ),
    Check(
        "batch_overdue",
        "no batch goes on for longer than the bound after its window, but for jobs that are asked to stop",
        f"""
        SELECT {_NAME} AS subject, concat('expired at ', b.expires_at) AS expected, concat('still ', b.status) AS found
        FROM batches b
        WHERE b.status IN ('validating', 'in_progress') AND b.expires_at < now() - make_interval(secs => :within)
        """,  # noqa: S608 - constants only
    ),
]
