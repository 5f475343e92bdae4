"""Which guards keep the protocol's promises, how is each taken out, and which tests must notice?

A patch is exact text that stands once in its file: where the code moves on, the patch has to follow (tests/unit/test_mutations.py).
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Patch:
    """`old` stands exactly once in `path` (relative to the root) and becomes `new`."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Guard:
    """`killers` are tests (file::name) of which one must fail without the guard. `pending` says why there is no patch yet."""

    name: str
    promise: str
    patches: tuple[Patch, ...]
    killers: tuple[str, ...]
    pending: str = field(default="")


LIFE = "tests/integration/jobs/test_life.py"
RATES = "tests/integration/quotas/test_rates.py"

BATCHES = "tests/integration/api/test_batches.py"
RETENTION = "tests/integration/retention"

GUARDS = (
    Guard(
        "batch-line-waits",
        "a line of a batch becomes one job, however many pumps are at it",
        (
            Patch(
                "app/batches/pump.py",
                "AND l.number = s.number AND l.state = 'waiting'",
                "AND l.number = s.number",
            ),
        ),
        (f"{BATCHES}::test_two_keepers_at_once_make_one_job_and_one_result_of_each_line",),
    ),
    Guard(
        "batch-files-compared",
        "a batch whose files don't hold each line once doesn't end",
        (Patch("app/batches/end.py", "    await check_files(db, now)  # nobody", "    # nobody"),),
        (f"{BATCHES}::test_files_with_a_line_too_many_do_not_end_the_batch",),
    ),
    Guard(
        "caps-lock",
        "submitters at once don't fill the same last place",
        (Patch("app/quotas/caps.py", 'text(_CAPS + "FOR NO KEY UPDATE")', "text(_CAPS)"),),
        ("tests/integration/quotas/test_caps.py::test_a_cap_is_used_up_to_the_last_job_and_token",),
    ),
    Guard(
        "caps-adopted-late",
        "a job that was given back while Redis was told what runs takes no place for ever",
        (
            Patch(
                "app/jobs/caps.py", "        forgotten += await queue.disown(row.id for row in rows if row.waits)\n", ""
            ),
        ),
        ("tests/integration/jobs/test_caps.py::test_jobs_that_were_given_back_before_they_were_adopted_take_no_place",),
    ),
    Guard(
        "fence-finish",
        "an attempt that is over ends nothing",
        (
            Patch(
                "app/jobs/finish.py",
                "ON jobs.id = ended.id AND jobs.attempt = ended.attempt\n",
                "ON jobs.id = ended.id\n",
            ),
        ),
        (f"{LIFE}::test_a_finish_from_a_fenced_attempt_changes_nothing",),
    ),
    Guard(
        "fence-give-back",
        "an attempt that is over gives nothing back",
        (
            Patch(
                "app/jobs/store.py",
                "ON jobs.id = held.id AND jobs.attempt = held.attempt WHERE jobs.status = 'running' ",
                "ON jobs.id = held.id WHERE jobs.status = 'running' ",
            ),
        ),
        (f"{LIFE}::test_a_give_back_from_a_fenced_attempt_changes_nothing",),
    ),
    Guard(
        "gen-start",
        "a nomination from before a requeue starts nothing",
        (
            Patch(
                "app/jobs/store.py",
                "nominated.gen = jobs.gen AND jobs.status = 'queued'",
                "jobs.status = 'queued'",
            ),
        ),
        (f"{LIFE}::test_a_stale_gen_starts_nothing",),
    ),
    Guard(
        "gen-ack",
        "an ack takes out only the nomination that was decided, not the one that followed it",
        (Patch("app/queue/lua/ack.lua", "if old_gen == gen then", "if old_gen then"),),
        ("tests/integration/queue/test_streams.py::test_ack_of_another_gen_changes_nothing",),
    ),
    Guard(
        "idempotent-enqueue",
        "a job is nominated once a gen, however often it is enqueued",
        (
            Patch(
                "app/queue/lua/enqueue.lua",
                "if not old_gen or tonumber(old_gen) < tonumber(gen) then",
                "if true then",
            ),
        ),
        (
            "tests/integration/queue/test_streams.py::test_a_job_is_nominated_once_per_gen",
            "tests/integration/queue/test_streams.py::test_a_newer_gen_replaces_the_older_one_and_an_older_one_is_refused",
        ),
    ),
    Guard(
        "idempotency-key",
        "requests under one key are one job, also when they come at once",
        (
            Patch(
                "app/jobs/submit.py",
                "        if made is not None:\n            return _replayed(made)\n",
                "",
            ),
        ),
        (f"{LIFE}::test_concurrent_submissions_under_one_key_make_one_job",),
    ),
    Guard(
        "one-transaction-finish",
        "status, result, usage and settlement are written together or not at all",
        (
            Patch(
                "app/jobs/finish.py",
                "    ended = {row.id: by_id[row.id] for row in rows}\n",
                '    ended = {row.id: by_id[row.id] for row in rows}\n    await conn.exec_driver_sql("COMMIT")\n',
            ),
        ),
        (f"{LIFE}::test_a_failing_insert_undoes_the_whole_finish",),
    ),
    Guard(
        "reserve-before",
        "what a job may use is reserved before it is accepted",
        (
            Patch(
                "app/jobs/submit.py",
                "    answers = await let_in(conn, [ask_of(caller, job, arrival.prices)], arrival.budgets)\n",
                "    answers = [Answer(job.max_tokens)]\n",
            ),
            Patch(
                "app/jobs/submit.py",
                "    answers = await let_in(conn, [ask_of(caller, each, prices[each.model.name]) for each in prepared])\n",
                "    answers = [Answer(each.max_tokens) for each in prepared]\n",
            ),
        ),
        (
            f"{LIFE}::test_a_budget_is_reserved_settled_and_released",
            f"{LIFE}::test_concurrent_submissions_never_pass_the_budget",
        ),
    ),
    Guard(
        "reserve-before-start",
        "a job that waits for a budget can't start, whoever nominates it",
        (Patch("app/jobs/store.py", "            AND jobs.reservation > 0\n", ""),),
        (
            "tests/integration/jobs/test_spending.py::test_a_nomination_of_a_held_job_starts_nothing_though_its_time_has_come",
        ),
    ),
    Guard(
        "lease-recheck-start",
        "nothing starts under a lease that has ended",
        (
            Patch(
                "app/jobs/store.py",
                "WHERE incarnation = :incarnation AND ended_at IS NULL AND expires_at > statement_timestamp() FOR KEY SHARE",
                "WHERE incarnation = :incarnation FOR KEY SHARE",
            ),
        ),
        (f"{LIFE}::test_nothing_starts_under_a_dead_lease",),
    ),
    Guard(
        "lease-recheck-reap",
        "the jobs of a worker that has renewed aren't taken from it",
        (
            Patch(
                "app/jobs/leases.py",
                "WHERE ended_at IS NULL AND expires_at < statement_timestamp()\n",
                "WHERE ended_at IS NULL\n",
            ),
        ),
        (f"{LIFE}::test_a_renewed_lease_is_not_reaped",),
    ),
    Guard(
        "no-expiry-after-restart",
        "right after a start of Postgres no expiry is believed: nobody could renew",
        (
            Patch(
                "app/jobs/leases.py",
                "                  AND pg_postmaster_start_time() < statement_timestamp() - make_interval(secs => :ttl)\n",
                "                  AND :ttl >= 0\n",
            ),
        ),
        (f"{LIFE}::test_right_after_a_restart_of_postgres_no_expiry_is_believed",),
    ),
    Guard(
        "commit-before-ack",
        "a nomination leaves Redis only when Postgres has decided it",
        (
            Patch(
                "workers/generation/claimer.py",
                '    kill_point("worker.after_claim")\n',
                "    await worker.queue.ack([(each.job_id, each.gen) for each in nominated])\n"
                '    kill_point("worker.after_claim")\n',
            ),
        ),
        ("tests/failure/test_order.py::test_a_claim_that_was_not_decided_is_still_nominated",),
    ),
    Guard(
        "commit-before-enqueue",
        "Redis hears of a job only when it exists",
        (
            Patch(
                "app/api/promising.py",
                '            kill_point("api.before_commit")\n',
                '            await _tell_workers(runtime, accepted)\n            kill_point("api.before_commit")\n',
            ),
        ),
        (
            "tests/integration/api/test_process.py::test_killed_between_commit_and_enqueue_the_job_is_there_and_its_key_finds_it",
        ),
    ),
    Guard(
        "worker-fences-itself",
        "a worker that can't renew gives up its jobs before others take them",
        (
            Patch(
                "workers/generation/lease.py",
                "            if clock.monotonic() - renewed_at >= settings.lease_fence_s:\n",
                "            if False:\n",
            ),
        ),
        ("tests/failure/test_links.py::test_a_worker_cut_from_postgres_fences_itself_and_its_jobs_run_elsewhere",),
    ),
    Guard(
        "same-model-resume",
        "a job goes on only from tokens that this worker would have chosen",
        (
            Patch(
                "workers/generation/resume.py",
                "    if checkpoint.made_by != worker.made_by:\n",
                "    if False:\n",
            ),
        ),
        (
            "tests/integration/worker/test_races.py::test_tokens_of_another_model_are_not_gone_on_from",
            "tests/failure/test_deploy.py::test_a_worker_with_another_version_of_the_model_never_goes_on_from_its_tokens",
        ),
    ),
    Guard(
        "breaker-compare-and-set",
        "of several keepers one changes a breaker",
        (
            Patch(
                "app/jobs/breakers.py",
                "WHERE model = :model AND version = :version RETURNING version",
                "WHERE model = :model AND :version > 0 RETURNING version",
            ),
        ),
        ("tests/integration/jobs/test_breakers.py::test_a_keeper_that_comes_second_changes_nothing",),
    ),
    Guard(
        "breaker-probes",
        "a half-open model takes so many new jobs and no more",
        (
            Patch(
                "app/jobs/breakers.py",
                "    UPDATE breakers SET probes_left = probes_left - 1\n",
                "    UPDATE breakers SET probes_left = probes_left\n",
            ),
        ),
        ("tests/integration/jobs/test_breakers.py::test_probes_are_counted_exactly_whoever_asks_at_once",),
    ),
    Guard(
        "ends-lock-in-order",
        "who ends waiting jobs waits for nobody who may wait for them",
        (
            Patch(
                "app/jobs/finish.py",
                "WHERE jobs.status = 'queued' ORDER BY jobs.id FOR UPDATE OF jobs)",
                "WHERE jobs.status = 'queued')",
            ),
        ),
        (
            "tests/integration/jobs/test_lock_order.py::test_jobs_are_ended_in_the_order_of_their_ids_however_their_rows_lie",
        ),
    ),
    Guard(
        "probes-lock-in-order",
        "submissions that name the same half-open models don't wait for each other",
        (Patch("app/api/promising.py", "for name in sorted(asking):", "for name in asking:"),),
        (
            "tests/integration/api/test_breakers.py::test_bulks_that_name_two_half_open_models_in_either_order_do_not_wait_for_each_other",
        ),
    ),
    Guard(
        "suspect-before-convict",
        "a job is given up for killing engines only after it has done so alone, twice",
        (
            Patch(
                "app/jobs/rescue.py",
                '(row.solo_crashes + (row.lane == "solo"), fate.max_solo_crashes, "engine_crashes")',
                '(row.engine_crashes + 1, fate.max_solo_crashes, "engine_crashes")',
            ),
        ),
        (
            f"{LIFE}::test_a_suspect_is_dead_after_two_engines_that_died_with_nothing_but_it",
            "tests/failure/test_poison.py::test_more_suspects_than_can_run_one_by_one_are_halved",
        ),
    ),
    Guard(
        "suspects-have-no-company",
        "a suspect runs with nobody beside it, so that its engine's death speaks against it alone",
        (Patch("app/queue/lua/claim.lua", "  if lane then return nil end\n", ""),),
        (
            "tests/integration/queue/test_streams.py::test_a_suspect_is_claimed_before_all_others_and_alone",
            "tests/integration/queue/test_streams.py::test_many_suspects_come_in_halves_but_never_in_groups_that_could_run_one_by_one",
        ),
    ),
    Guard(
        "self-test-before-suspects",
        "a suspect is tried only by an engine that has just passed its self-test",
        (Patch("workers/generation/claimer.py", "            await worker.canary.sing()\n", "            pass\n"),),
        ("tests/failure/test_poison.py::test_a_suspect_is_not_tried_by_an_engine_that_fails_its_self_test",),
    ),
    Guard(
        "rates-all-or-none",
        "a submission that one rate limit refuses takes nothing from the others",
        (
            Patch(
                "app/quotas/lua/admit.lua",
                "  if admitted == 1 then level = level + amounts[i] end\n",
                "  level = level + amounts[i]\n",
            ),
        ),
        (f"{RATES}::test_a_refusal_takes_nothing_from_any_bucket",),
    ),
    Guard(
        "rates-refund-once",
        "what a refused job took from a rate limit is given back once",
        (Patch("app/quotas/lua/refund.lua", "  if is_new and back > 0 then\n", "  if back > 0 then\n"),),
        (f"{RATES}::test_what_a_refused_job_took_is_there_again_and_only_once",),
    ),
    Guard(
        "rates-refund-what-has-not-leaked",
        "being refused for another reason again and again passes no rate limit",
        (
            Patch(
                "app/quotas/lua/refund.lua",
                "math.max(0, amount * PARTS - math.max(0, now - taken) * per_minute)",
                "amount * PARTS",
            ),
        ),
        (f"{RATES}::test_it_is_gcra_to_the_microsecond",),
    ),
    Guard(
        "rates-told-after-an-outage",
        "what a process let in without Redis counts when Redis is back",
        (Patch("app/quotas/lua/admit.lua", "  if floor > level then level, stale[i] = floor, true end\n", ""),),
        (f"{RATES}::test_what_is_let_in_while_redis_is_told_goes_along_with_the_next_request",),
    ),
    Guard(
        "webhooks-try-fence",
        "a try of a delivery begins once, whoever holds an older nomination",
        (
            Patch(
                "app/webhooks/delivery.py",
                "WHERE d.status = 'pending' AND d.tries = wanted.number - 1\n",
                "WHERE d.status = 'pending'\n",
            ),
        ),
        ("tests/integration/webhooks/test_delivery.py::test_a_stale_nomination_begins_nothing",),
    ),
    Guard(
        "webhooks-disabled",
        "nothing is sent to an endpoint that was disabled, whatever was handed over before",
        (Patch("app/webhooks/delivery.py", "          AND (d.endpoint_id IS NULL OR e.status = 'enabled')\n", ""),),
        (
            "tests/integration/webhooks/test_endpoints.py::test_what_was_handed_over_before_its_endpoint_was_disabled_isnt_sent",
        ),
    ),
    Guard(
        "webhooks-every-record",
        "one address that isn't public among a name's records spoils them all",
        (
            Patch(
                "app/webhooks/address.py",
                "    for address in addresses:\n        if not is_allowed",
                "    for address in addresses[:1]:\n        if not is_allowed",
            ),
        ),
        ("tests/integration/webhooks/test_ssrf.py::test_no_hostile_url_is_ever_connected_to",),
    ),
    Guard(
        "retention-rolls-up",
        "what deleted jobs have settled stays in the books of their budgets",
        (
            Patch(
                "app/retention/jobs.py",
                "coalesce(sum(amount) FILTER (WHERE kind = 'settle'), 0), count(DISTINCT job_id)",
                "0, count(DISTINCT job_id)",
            ),
        ),
        (f"{RETENTION}/test_jobs.py::test_an_old_job_goes_with_all_that_belongs_to_it_and_its_bill_stays",),
    ),
    Guard(
        "retention-keeps-evidence",
        "a job whose reservations don't add up is kept for the audit to find",
        (
            Patch(
                "app/retention/jobs.py",
                "HAVING count(*) <> 3 OR sum(CASE l.kind WHEN 'reserve' THEN l.amount ELSE -l.amount END) <> 0)",
                "HAVING count(*) < 0)",
            ),
        ),
        (f"{RETENTION}/test_jobs.py::test_what_does_not_add_up_is_kept_for_the_audit_to_find",),
    ),
    Guard(
        "retention-fence",
        "a run that has lost its place deletes nothing more",
        (
            Patch(
                "app/retention/runs.py",
                "WHERE r.id = :id AND r.running RETURNING r.id",
                "WHERE r.id = :id RETURNING r.id",
            ),
        ),
        (f"{RETENTION}/test_runs.py::test_the_place_of_a_run_whose_process_died_is_taken_over",),
    ),
    Guard(
        "retention-content-held",
        "texts that another job waits for aren't wiped",
        (
            Patch(
                "app/retention/content.py",
                "    (SELECT true FROM jobs f WHERE f.shared_from = j.id AND f.status = 'queued' LIMIT 1),\n",
                "",
            ),
        ),
        (f"{RETENTION}/test_content.py::test_texts_that_others_wait_for_are_wiped_after_them",),
    ),
    Guard(
        "events-by-attempt",
        "once an attempt has begun, no earlier one writes an event before its own, however many tokens ahead it is",
        (Patch("app/queue/events.py", "if self.attempt == self.run:", "if self.attempt >= self.run:"),),
        (
            "tests/unit/streams/test_fenced.py::test_a_later_attempt_is_heard_whole_whatever_an_earlier_one_goes_on_writing",
            "tests/integration/streams/test_trouble.py::test_a_fenced_attempt_that_is_ahead_in_one_choice_hides_nothing_of_its_successor",
        ),
    ),
    Guard(
        "forget-only-the-absent",
        "a queue forgets no tenant of which anything waits or runs",
        (Patch("app/queue/lua/forget.lua", " and not is_here(tenant)", ""),),
        ("tests/integration/queue/test_memory.py::test_who_has_anything_here_is_not_forgotten",),
    ),
    Guard(
        "one-off-lanes",
        "however many hosts a tenant's jobs name, it has so many lanes",
        (Patch("app/webhooks/lanes.py", "#{digest[0] % ONE_OFF_LANES}", "#{_origin(url)}"),),
        (
            "tests/unit/webhooks/test_lane_names.py::test_a_tenant_has_so_many_lanes_however_many_hosts_its_jobs_name",
            "tests/integration/webhooks/test_many_hosts.py::test_the_rows_that_an_event_writes_are_in_bounded_lanes",
        ),
    ),
)
