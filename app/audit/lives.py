"""Is each job's life consistent? Row, attempts, result, key and notices, each against the others."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One claim about the database. `sql` gives a row (subject, expected, found) for each violation.

    A subject that is a UUID is a job. `:within` is the bound, in seconds, for what may be under way.
    """

    name: str
    claim: str
    sql: str


LIVES = [
    Check(
        "job_status",
        "a queued job has no worker and no end, a running one has a worker and no end, an ended one an end and no worker",
        """
        SELECT id AS subject,
               CASE status WHEN 'queued' THEN 'queued: no worker, no end'
                           WHEN 'running' THEN 'running: worker, no end'
                           ELSE status || ': no worker, end' END AS expected,
               concat(CASE WHEN incarnation IS NULL THEN 'no worker' ELSE 'worker' END, ', ',
                      CASE WHEN finished_at IS NULL THEN 'no end' ELSE 'end' END) AS found
        FROM jobs
        WHERE (status = 'running') <> (incarnation IS NOT NULL)
           OR (status IN ('queued', 'running')) <> (finished_at IS NULL)
        """,
    ),
    Check(
        "job_attempt",
        "attempt = gen - 1 in the queue, attempt = gen from its start on",
        """
        SELECT id AS subject,
               CASE WHEN status = 'queued' THEN concat('attempt ', gen - 1)
                    WHEN status IN ('cancelled', 'expired') THEN concat('attempt ', gen - 1, ' or ', gen)
                    ELSE concat('attempt ', gen) END AS expected,
               concat(status, ' with attempt ', attempt) AS found
        FROM jobs
        WHERE gen < 1 OR CASE WHEN status = 'queued' THEN attempt <> gen - 1
                              WHEN status IN ('cancelled', 'expired') THEN attempt NOT IN (gen - 1, gen)
                              ELSE attempt <> gen END
        """,
    ),
    Check(
        "job_input",
        "a job that waits or runs has its input",
        """
        SELECT id AS subject, 'an input' AS expected, 'none' AS found FROM jobs
        WHERE status IN ('queued', 'running') AND NOT EXISTS (SELECT 1 FROM job_inputs i WHERE i.job_id = jobs.id)
        """,
    ),
    Check(
        "running_worker",
        "a running job's worker exists, and its lease hasn't been over for longer than the bound",
        """
        SELECT j.id AS subject, 'a worker that holds its lease' AS expected,
               CASE WHEN w.incarnation IS NULL THEN concat('no worker ', j.incarnation)
                    WHEN w.ended_at IS NOT NULL THEN concat(w.state, ' since ', w.ended_at)
                    ELSE concat('expired at ', w.expires_at) END AS found
        FROM jobs j LEFT JOIN workers w ON w.incarnation = j.incarnation
        WHERE j.status = 'running' AND j.incarnation IS NOT NULL
          AND (w.incarnation IS NULL
               OR least(w.ended_at, w.expires_at) < now() - make_interval(secs => :within))
        """,
    ),
    Check(
        "overdue",
        "no delay, deadline or cancel has been over for longer than the bound without effect",
        """
        SELECT id AS subject, due.expected, concat('still ', status) AS found
        FROM jobs CROSS JOIN LATERAL (
            SELECT concat('woken at ', not_before) AS expected, not_before AS at WHERE status = 'queued'
            UNION ALL SELECT concat('expired at ', deadline_at), deadline_at
            UNION ALL SELECT concat('cancelled at ', cancel_requested_at), cancel_requested_at WHERE status = 'running'
        ) AS due
        WHERE status IN ('queued', 'running') AND due.at < now() - make_interval(secs => :within)
        """,
    ),
    Check(
        "attempt_rows",
        "attempts 1 to the last that ended have one row each",
        """
        SELECT j.id AS subject, concat('attempts 1 to ', j.attempt - (j.status = 'running')::int) AS expected,
               concat(coalesce(a.rows, 0), ' rows, from ', a.first, ' to ', a.last) AS found
        FROM jobs j LEFT JOIN (
            SELECT attempts.job_id, count(*) AS rows, min(attempts.attempt) AS first, max(attempts.attempt) AS last
            FROM attempts JOIN jobs ON jobs.id = attempts.job_id AND attempts.attempt <= jobs.attempt
            GROUP BY attempts.job_id) a ON a.job_id = j.id
        WHERE coalesce(a.rows, 0) <> j.attempt - (j.status = 'running')::int OR a.first < 1
           OR a.last <> j.attempt - (j.status = 'running')::int
        """,
    ),
    Check(
        "fenced_writes",
        "nothing was written by an attempt that never was, and no result by one that wasn't the last",
        """
        SELECT j.id AS subject, concat('nothing after attempt ', j.attempt) AS expected,
               concat(late.what, ' of attempt ', late.attempt) AS found
        FROM jobs j JOIN (
            SELECT job_id, attempt, 'attempt row' AS what FROM attempts
            UNION ALL SELECT job_id, attempt, kind || ' usage' FROM usage) late ON late.job_id = j.id
        WHERE late.attempt > j.attempt
        UNION ALL
        SELECT j.id, concat('a result of attempt ', j.attempt), concat('result of attempt ', r.attempt)
        FROM jobs j JOIN job_results r ON r.job_id = j.id WHERE r.attempt <> j.attempt
        """,
    ),
    Check(
        "one_result",
        "succeeded: one result; cancelled, expired: one if output was billed, else none; failed: at most one; others: none",
        """
        SELECT j.id AS subject,
               CASE WHEN r.rows IS NULL OR r.rows > 1 THEN 'one result' ELSE 'no result' END AS expected,
               concat(j.status, ' with ', coalesce(r.rows, 0)) AS found
        FROM jobs j LEFT JOIN (SELECT job_id, count(*) AS rows FROM job_results GROUP BY job_id) r ON r.job_id = j.id
        WHERE r.rows > 1 OR CASE
            WHEN j.status = 'succeeded' THEN r.rows IS NULL
            WHEN j.status = 'failed' THEN false
            WHEN j.status IN ('cancelled', 'expired') THEN (r.rows IS NOT NULL) <> EXISTS (
                SELECT 1 FROM usage u WHERE u.job_id = j.id AND u.kind = 'billed' AND u.completion_tokens > 0)
            ELSE r.rows IS NOT NULL END
        """,
    ),
    Check(
        "idempotency_key",
        "an Idempotency-Key leads to a job of its tenant",
        """
        SELECT k.job_id AS subject, concat('a job of tenant ', k.tenant_id) AS expected,
               coalesce('one of ' || j.tenant_id, 'no job') AS found
        FROM idempotency_keys k LEFT JOIN jobs j ON j.id = k.job_id
        WHERE j.id IS NULL OR j.tenant_id <> k.tenant_id
        """,
    ),
    Check(
        "notice_true",
        "what a webhook tells has come true",
        """
        SELECT j.id AS subject, concat(d.event_type, ' has come true') AS expected, concat('job is ', j.status) AS found
        FROM webhook_deliveries d JOIN jobs j ON j.id = d.job_id
        WHERE NOT CASE d.event_type
            WHEN 'job.started' THEN j.attempt > 0
            WHEN 'job.dead' THEN (j.status = 'dead' AND d.reservation = j.reservation) OR EXISTS (
                SELECT 1 FROM dead_letters l WHERE l.job_id = j.id AND l.reservation = d.reservation)
            WHEN 'response.failed' THEN (j.status IN ('failed', 'expired', 'dead') AND d.reservation = j.reservation) OR EXISTS (
                SELECT 1 FROM dead_letters l WHERE l.job_id = j.id AND l.reservation = d.reservation)
            WHEN 'response.cancelled' THEN j.status = 'cancelled' AND d.reservation = j.reservation
            WHEN 'response.completed' THEN j.status = 'succeeded' AND d.reservation = j.reservation
            WHEN 'response.incomplete' THEN j.status = 'succeeded' AND d.reservation = j.reservation
            ELSE d.event_type = 'job.' || j.status AND d.reservation = j.reservation END
        """,
    ),
    Check(
        "notice_written",
        "each event that a job's webhook asked for and that came true has its delivery",
        """
        SELECT j.id AS subject, concat('a delivery of ', e.type, ' of reservation ', e.reservation) AS expected, 'none' AS found
        FROM jobs j CROSS JOIN LATERAL (
            SELECT 'job.started' AS type, NULL AS reservation WHERE j.attempt > 0
            UNION ALL SELECT 'job.' || j.status, j.reservation WHERE j.finished_at IS NOT NULL
            UNION SELECT 'job.dead', l.reservation FROM dead_letters l WHERE l.job_id = j.id) e
        WHERE j.webhook IS NOT NULL
          AND (coalesce(j.webhook -> 'events', '[]') ? e.type
               OR (e.type <> 'job.started' AND coalesce(j.webhook -> 'events', '[]') = '[]'))
          AND NOT EXISTS (
            SELECT 1 FROM webhook_deliveries d WHERE d.job_id = j.id AND d.event_type = e.type AND d.endpoint_id IS NULL
              AND d.reservation = coalesce(e.reservation, d.reservation))
        """,
    ),
    Check(
        "endpoint_told",
        "each end of a job since a tenant's endpoint was last changed, that it asked for, has its delivery to it",
        """
        SELECT j.id AS subject, concat('a delivery of job.', j.status, ' to endpoint ', e.id) AS expected, 'none' AS found
        FROM webhook_endpoints e JOIN jobs j ON j.tenant_id = e.tenant_id
        -- An end reads the endpoints a moment after its own time, and an endpoint's row is visible a moment after its.
        WHERE e.status = 'enabled' AND j.finished_at > e.updated_at + interval '30 s'
          AND (e.events IS NULL OR e.events && ARRAY['job.' || j.status, 'job.*', '*'])
          AND NOT EXISTS (
            SELECT 1 FROM webhook_deliveries d WHERE d.job_id = j.id AND d.event_type = 'job.' || j.status
              AND d.endpoint_id = e.id AND d.reservation = j.reservation)
        """,
    ),
    Check(
        "response_told",
        "each end of a background response since a tenant's endpoint was last changed, that it asked for, has its delivery to it",
        """
        SELECT j.id AS subject, concat('a delivery of a response''s end to endpoint ', e.id) AS expected, 'none' AS found
        FROM webhook_endpoints e JOIN jobs j ON j.tenant_id = e.tenant_id JOIN face_calls f ON f.job_id = j.id
        -- A body may hold U+0000, which no `->>` takes.
        WHERE f.face = 'responses' AND CASE WHEN strpos(f.body::text, '\\u0000') = 0 THEN f.body ->> 'background' = 'true'
                                            ELSE f.body::text ~ '"background": ?true' END
          AND e.status = 'enabled' AND j.finished_at > e.updated_at + interval '30 s'
          AND (e.events IS NULL OR e.events && ARRAY['response.*', '*'])
          AND NOT EXISTS (
            SELECT 1 FROM webhook_deliveries d WHERE d.job_id = j.id AND starts_with(d.event_type, 'response.')
              AND d.endpoint_id = e.id AND d.reservation = j.reservation)
        """,
    ),
    Check(
        "notice_once",
        "an event of a job's life is told to a target by one delivery, its start once in all",
        """
        SELECT job_id AS subject, 'one delivery' AS expected, concat(count(*), ' of ', event_type) AS found
        FROM webhook_deliveries WHERE job_id IS NOT NULL
        GROUP BY job_id, event_type, url, endpoint_id, CASE WHEN event_type <> 'job.started' THEN reservation END HAVING count(*) > 1
        """,
    ),
]
