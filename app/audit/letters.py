"""Are the dead letters whole? One for each life that was given up, none gone, none closed without somebody's name."""

from app.audit.lives import Check

LETTERS = [
    Check(
        "dead_letter",
        "a dead job has its dead letter, and a letter that is open or discarded is of a dead job's last life",
        """
        SELECT j.id AS subject, concat('a dead letter of reservation ', j.reservation) AS expected, 'none' AS found
        FROM jobs j WHERE j.status = 'dead' AND NOT EXISTS (
            SELECT 1 FROM dead_letters d WHERE d.job_id = j.id AND d.reservation = j.reservation)
        UNION ALL
        SELECT d.job_id, concat('a dead job of reservation ', d.reservation, ', or a letter that was requeued'),
               coalesce(concat(j.status, ' of reservation ', j.reservation), 'no job')
        FROM dead_letters d LEFT JOIN jobs j ON j.id = d.job_id
        WHERE d.resolution IS DISTINCT FROM 'requeued'
          AND (j.id IS NULL OR j.status <> 'dead' OR j.reservation <> d.reservation)
        """,
    ),
    Check(
        "requeue",
        "a job has had as many letters requeued as lives before this one, each of a later attempt than the one before",
        """
        SELECT j.id AS subject, concat('letters 1 to ', j.reservation - 1, ' requeued, of rising attempts') AS expected,
               concat(coalesce(d.requeued, 0), ' requeued, up to ', coalesce(d.last, 0),
                      CASE WHEN d.rising THEN '' ELSE ', of attempts that do not rise' END) AS found
        FROM jobs j LEFT JOIN (
            SELECT job_id, count(*) AS requeued, max(reservation) AS last, max(attempt) AS attempt, bool_and(rises) AS rising
            FROM (SELECT job_id, reservation, attempt,
                         attempt > lag(attempt, 1, 0) OVER (PARTITION BY job_id ORDER BY reservation) AS rises
                  FROM dead_letters WHERE resolution = 'requeued') each
            GROUP BY job_id) d ON d.job_id = j.id
        WHERE (j.reservation > 1 OR d.job_id IS NOT NULL)
          AND (coalesce(d.requeued, 0) <> j.reservation - 1 OR d.last <> j.reservation - 1 OR NOT d.rising
               OR d.attempt > j.attempt)
        """,
    ),
    Check(
        "operator_act",
        "a letter that was resolved says by whom and why, and their act is in the log, once; an act on a job that is there has its letter",
        """
        SELECT d.job_id AS subject, concat('one act of ', coalesce(d.resolved_by, 'somebody'), ', ',
                   coalesce(d.resolution, 'by some resolution'), ' reservation ', d.reservation) AS expected,
               concat(count(a.id), ' acts') AS found
        FROM dead_letters d LEFT JOIN audit_log a
            ON a.target = 'job_' || replace(d.job_id::text, '-', '')
           AND a.action = CASE d.resolution WHEN 'requeued' THEN 'dead_letter.requeue' ELSE 'dead_letter.discard' END
           AND a.actor = d.resolved_by AND (a.detail ->> 'reservation')::int = d.reservation
        WHERE d.resolved_at IS NOT NULL AND d.resolution_reason IS DISTINCT FROM 'before 0002'
        GROUP BY d.job_id, d.reservation, d.resolved_by, d.resolution, d.resolution_reason
        HAVING count(a.id) <> 1 OR d.resolved_by IS NULL OR coalesce(d.resolution_reason, '') = ''
        UNION ALL
        SELECT NULL, 'a resolved dead letter', concat(a.action, ' of ', a.target, ' reservation ', a.detail ->> 'reservation')
        FROM audit_log a WHERE a.action IN ('dead_letter.requeue', 'dead_letter.discard') AND NOT EXISTS (
            SELECT 1 FROM dead_letters d
            WHERE 'job_' || replace(d.job_id::text, '-', '') = a.target AND d.resolved_at IS NOT NULL
              AND d.reservation = (a.detail ->> 'reservation')::int)
          -- Letters of deleted jobs are deleted with them; the log of acts is kept.
          AND EXISTS (SELECT 1 FROM jobs j WHERE j.id = CASE WHEN a.target ~ '^job_[0-9a-f]{32}$' THEN substr(a.target, 5)::uuid END)
        """,
    ),
]
