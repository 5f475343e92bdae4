"""Do bill, ledger and budgets agree? What was used once is billed once, and what was set aside is used or given back."""

from app.audit.lives import Check

# What a budget of metric b counts of the billed row u.
_IN_METRIC = """CASE b.metric WHEN 'input_tokens' THEN u.prompt_tokens WHEN 'output_tokens' THEN u.completion_tokens
    WHEN 'total_tokens' THEN u.prompt_tokens + u.completion_tokens WHEN 'requests' THEN (u.job_id IS NOT NULL)::int
    WHEN 'cost' THEN u.cost_micros END"""

MONEY = [
    Check(
        "billed_once",
        "no job is billed twice",
        """
        SELECT job_id AS subject, 'one billed row' AS expected, concat(count(*), ' rows') AS found
        FROM usage WHERE kind = 'billed' GROUP BY job_id HAVING count(*) > 1
        """,
    ),
    Check(
        "billed_end",
        "a succeeded job is billed for its last attempt, a cancelled or expired one for that or not at all, others aren't",
        """
        SELECT j.id AS subject,
               CASE WHEN j.status = 'succeeded' THEN concat('billed for attempt ', j.attempt)
                    WHEN j.status IN ('cancelled', 'expired') THEN concat('billed for attempt ', j.attempt, ', or not')
                    ELSE concat(j.status, ': not billed') END AS expected,
               coalesce('billed for attempt ' || u.attempt, 'not billed') AS found
        FROM jobs j LEFT JOIN usage u ON u.job_id = j.id AND u.kind = 'billed'
        WHERE CASE WHEN j.status = 'succeeded' THEN u.job_id IS NULL OR u.attempt < j.attempt
                   WHEN j.status IN ('cancelled', 'expired') THEN u.attempt < j.attempt
                   ELSE u.job_id IS NOT NULL END
        """,
    ),
    Check(
        "billed_tokens",
        "no more is billed than n x max_tokens, and no more is cached than the prompt",
        """
        SELECT j.id AS subject, concat('at most ', j.n * j.max_tokens, ' tokens of output') AS expected,
               concat(u.completion_tokens, ' and ', u.cached_tokens, ' of ', u.prompt_tokens, ' cached') AS found
        FROM usage u JOIN jobs j ON j.id = u.job_id
        WHERE u.kind = 'billed'
          AND (u.completion_tokens > j.n * j.max_tokens OR u.cached_tokens > u.prompt_tokens
               OR least(u.completion_tokens, u.cached_tokens, u.prompt_tokens) < 0)
        """,
    ),
    Check(
        "billed_cost",
        "a bill is its tokens at the prices of its job's reservation, rounded up once; waste costs nothing",
        """
        SELECT j.id AS subject, concat(due.cost, ' millionths') AS expected, u.cost_micros::text AS found
        FROM usage u JOIN jobs j ON j.id = u.job_id CROSS JOIN LATERAL (
            SELECT CASE u.kind WHEN 'billed' THEN ceil(
                (u.prompt_tokens::numeric * j.input_price + u.completion_tokens::numeric * j.output_price) / 1000000)
                ELSE 0 END AS cost) due
        WHERE u.cost_micros <> due.cost
        """,
    ),
    Check(
        "held",
        "a job waits for a budget exactly as long as it has no reservation: queued, until a time, a stranger to the ledger",
        """
        SELECT j.id AS subject,
               'a reservation, or none and a budget to wait for' AS expected,
               concat(j.status, ', reservation ', j.reservation, ', held by ', coalesce(j.held_by::text, 'none'),
                      ', not before ', coalesce(j.not_before::text, 'none'),
                      CASE WHEN b.id IS NULL AND j.held_by IS NOT NULL THEN ', of no budget of its tenant' END,
                      CASE WHEN l.job_id IS NOT NULL THEN ', in the ledger' END) AS found
        FROM jobs j LEFT JOIN budgets b ON b.id = j.held_by AND b.tenant_id = j.tenant_id
            AND (b.api_key_id IS NULL OR b.api_key_id = j.api_key_id)
        LEFT JOIN LATERAL (SELECT job_id FROM ledger WHERE ledger.job_id = j.id AND j.reservation = 0 LIMIT 1) l ON true
        WHERE (j.reservation = 0 OR j.held_by IS NOT NULL) AND NOT CASE
            WHEN j.held_by IS NOT NULL THEN j.status = 'queued' AND j.reservation = 0 AND j.not_before IS NOT NULL
                AND j.attempt = 0 AND b.id IS NOT NULL AND l.job_id IS NULL
            ELSE j.status IN ('cancelled', 'expired') AND j.attempt = 0 AND l.job_id IS NULL END
        """,
    ),
    Check(
        "usage_visible",
        "an attempt that ended its job, or a life of it, left a row of usage, billed or wasted",
        """
        SELECT ended.job_id AS subject, concat('usage of attempt ', ended.attempt) AS expected, 'none' AS found
        FROM (SELECT id AS job_id, attempt FROM jobs WHERE status IN ('failed', 'dead')
              UNION SELECT job_id, attempt FROM dead_letters WHERE attempt > 0) ended
        WHERE NOT EXISTS (
            SELECT 1 FROM usage u WHERE u.job_id = ended.job_id AND u.attempt = ended.attempt)
        """,
    ),
    Check(
        "budget_sums",
        "a window's reserved = reserves - settles - releases, and its used = settles, of the ledger and its roll-up",
        """
        SELECT concat('budget ', w.budget_id, ' from ', w.window_start) AS subject,
               concat('used ', coalesce(l.used, 0) + coalesce(r.settled, 0), ', reserved ', coalesce(l.reserved, 0)) AS expected,
               concat('used ', w.used, ', reserved ', w.reserved) AS found
        FROM budget_windows w LEFT JOIN (
            SELECT budget_id, window_start, coalesce(sum(amount) FILTER (WHERE kind = 'settle'), 0) AS used,
                   sum(CASE kind WHEN 'reserve' THEN amount ELSE -amount END) AS reserved
            FROM ledger GROUP BY budget_id, window_start) l USING (budget_id, window_start)
        LEFT JOIN ledger_rollups r USING (budget_id, window_start)
        WHERE w.used <> coalesce(l.used, 0) + coalesce(r.settled, 0) OR w.reserved <> coalesce(l.reserved, 0)
        """,
    ),
    Check(
        "budget_limit",
        "used + reserved is within the window's limit, and neither is negative",
        """
        SELECT concat('budget ', budget_id, ' from ', window_start) AS subject, concat('at most ', hard_limit) AS expected,
               concat('used ', used, ', reserved ', reserved) AS found
        FROM budget_windows WHERE used + reserved > hard_limit OR used < 0 OR reserved < 0
        """,
    ),
    Check(
        "ledger_place",
        "each row of the ledger belongs to a budget and a window that exist",
        """
        SELECT l.job_id AS subject, concat('budget ', l.budget_id, ' with a window from ', l.window_start) AS expected,
               CASE WHEN b.id IS NULL THEN 'no budget' ELSE 'no window' END AS found
        FROM ledger l LEFT JOIN budgets b ON b.id = l.budget_id LEFT JOIN budget_windows w USING (budget_id, window_start)
        WHERE b.id IS NULL OR w.budget_id IS NULL
        """,
    ),
    Check(
        "reservation",
        "a reservation is settled and released once when its job has ended, to the token, and untouched before",
        """
        SELECT m.job_id AS subject,
               CASE WHEN m.is_open THEN concat('reserved ', m.reserved, ', not settled')
                    ELSE concat('settled and released once, together ', m.reserved) END AS expected,
               concat('reserves ', m.reserves, ', settles ', m.settles, ', releases ', m.releases,
                      ', together ', m.returned) AS found
        FROM (
            SELECT l.job_id, l.reservation, max(j.reservation) AS latest,
                   coalesce(bool_or(j.status IN ('queued', 'running') AND j.reservation = l.reservation), false) AS is_open,
                   count(*) FILTER (WHERE l.kind = 'reserve') AS reserves,
                   count(*) FILTER (WHERE l.kind = 'settle') AS settles,
                   count(*) FILTER (WHERE l.kind = 'release') AS releases,
                   coalesce(sum(l.amount) FILTER (WHERE l.kind = 'reserve'), 0) AS reserved,
                   coalesce(sum(l.amount) FILTER (WHERE l.kind <> 'reserve'), 0) AS returned,
                   count(DISTINCT l.window_start) AS windows
            FROM ledger l LEFT JOIN jobs j ON j.id = l.job_id
            GROUP BY l.job_id, l.reservation, l.budget_id) m
        WHERE m.reserves <> 1 OR m.windows <> 1 OR m.reservation NOT BETWEEN 1 AND m.latest
           OR CASE WHEN m.is_open THEN m.settles + m.releases > 0
                   ELSE m.settles <> 1 OR m.releases <> 1 OR m.returned <> m.reserved END
        """,
    ),
    Check(
        "reserved_again",
        "a job that was requeued has reserved in each budget in which its life before had, unless that was retired",
        """
        SELECT l.job_id AS subject, concat('reservation ', l.reservation + 1, ' in budget ', l.budget_id) AS expected,
               'none' AS found
        FROM ledger l JOIN jobs j ON j.id = l.job_id AND l.reservation < j.reservation JOIN budgets b ON b.id = l.budget_id
        WHERE l.kind = 'reserve' AND b.retired_at IS NULL AND NOT EXISTS (
            SELECT 1 FROM ledger next WHERE next.kind = 'reserve'
              AND (next.job_id, next.budget_id, next.reservation) = (l.job_id, l.budget_id, l.reservation + 1))
        """,
    ),
    Check(
        "reserved_amount",
        "the latest reservation is of what the job may use at most: prompt and n x max_tokens, at its prices",
        """
        SELECT j.id AS subject, concat(wanted.amount, ' ', b.metric) AS expected, l.amount::text AS found
        FROM ledger l JOIN jobs j ON j.id = l.job_id AND j.reservation = l.reservation JOIN budgets b ON b.id = l.budget_id
        CROSS JOIN LATERAL (
            SELECT CASE b.metric WHEN 'input_tokens' THEN j.prompt_tokens WHEN 'output_tokens' THEN j.n * j.max_tokens
                WHEN 'total_tokens' THEN j.prompt_tokens + j.n * j.max_tokens WHEN 'requests' THEN 1
                WHEN 'cost' THEN ceil((j.prompt_tokens::numeric * j.input_price
                                       + j.n::numeric * j.max_tokens * j.output_price) / 1000000) END AS amount) wanted
        WHERE l.kind = 'reserve' AND l.amount <> wanted.amount
        """,
    ),
    Check(
        "settled_amount",
        "a settlement is what was billed, in the budget's metric and at most what was reserved",
        f"""
        SELECT j.id AS subject, concat(due.amount, ' ', b.metric) AS expected, s.amount::text AS found
        FROM ledger s JOIN budgets b ON b.id = s.budget_id JOIN jobs j ON j.id = s.job_id
        JOIN ledger r ON r.kind = 'reserve'
            AND (r.job_id, r.reservation, r.budget_id) = (s.job_id, s.reservation, s.budget_id)
        LEFT JOIN usage u ON u.job_id = s.job_id AND u.kind = 'billed' AND s.reservation = j.reservation
        CROSS JOIN LATERAL (SELECT least(r.amount, coalesce({_IN_METRIC}, 0)) AS amount) due
        WHERE s.kind = 'settle' AND s.amount <> due.amount
        """,  # noqa: S608  constants only
    ),
]
