"""What does the code mean that a job, or a line of a batch, ends with, and what is to be done? The API's own codes are in `app/errors.py`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explained:
    """A code in words. docs/errors.md has the same."""

    meaning: str
    advice: str


# In a job's `error.code`, or in an attempt's.
JOB_CODES: Mapping[str, Explained] = {
    "deadline_passed": Explained(
        "The deadline passed in the queue, or while it ran. What was written until then is in `choices`.",
        "A later deadline, a higher tier, fewer tokens.",
    ),
    "deadline_unreachable": Explained(
        "It waited until it could no longer meet its deadline, even at twice the usual pace; the message says how much was left and needed. No worker started it, and it isn't billed.",
        "A later deadline, a higher tier, fewer tokens.",
    ),
    "prompt_too_long": Explained(
        "The prompt doesn't fit into this worker's context, which may be smaller than the one that was checked at submission (fewer KV pages).",
        "Shorten it, or give the worker more `kv_cache_mib`.",
    ),
    "prompt_empty": Explained(
        "The engine got a prompt without tokens.",
        "Submissions check this before: report it.",
    ),
    "grammar_invalid": Explained(
        "The schema, regex, list or grammar that the output should keep to doesn't compile, or allows nothing that the model's vocabulary can spell; the message says why, and where as far as that can be said: a place in a schema by its keywords (`properties[2nd].items.type`), in a regex by characters, in a grammar by line and column. … stands for what it would quote of yours.",
        "Mend it.",
    ),
    "grammar_too_complex": Explained(
        "Compiling it took more than `grammar_check_s` of processor time, or too much memory, and was stopped.",
        "Make it simpler: smaller bounds, fewer alternatives.",
    ),
    "grammar_failed": Explained(
        "The grammar compiled, but ran into a limit while the output was generated, came to a place where the model's vocabulary can't spell on, or doesn't allow what the job was resumed with.",
        "Make it simpler.",
    ),
    "grammar_unchecked": Explained(
        "The grammar couldn't be checked: its checker didn't start, was killed from outside, or had no processor for too long.",
        "Submit again.",
    ),
    "grammar_unsupported": Explained(
        "This worker's engine or tokenizer can't keep outputs to a grammar.",
        "Use another model.",
    ),
    "out_of_memory": Explained(
        "The GPU had no memory left for this request, even alone and one token at a time.",
        "Lower `gpu_memory_utilization` or `max_batch_tokens`, or free the GPU of other processes; then submit again.",
    ),
    "token_id_invalid": Explained(
        "A token id isn't in this worker's vocabulary: the model behind the name has changed.",
        "Submit again.",
    ),
    "request_invalid": Explained(
        "`n`, `max_tokens` or the resumed choices make no sense to the engine.",
        "Submissions check this before: report it.",
    ),
    "parameter_unsupported": Explained(
        "The upstream's dialect has no such parameter; the message names it.",
        "Leave it out, or another model.",
    ),
    "upstream_rejected": Explained(
        "The server behind this model refuses the request; the message is the server's.",
        "Mend what it names.",
    ),
    "upstream_unreadable": Explained(
        "The server's text can't be written with our tokenizer: `PENSTOCK_MODEL` isn't the server's model.",
        "Report it.",
    ),
    "upstream_failed": Explained(
        "The server broke the request off, or again and again didn't begin it while it served others. In the attempt's row.",
        "Nothing, until `attempts_exhausted`.",
    ),
    "stream_broken": Explained(
        "vLLM or the server ended without saying why. In the attempt's row.",
        "Nothing, until `attempts_exhausted`.",
    ),
    "duplicate_request": Explained(
        "The engine has this attempt already.",
        "A bug of ours: report it.",
    ),
    "invalid_request": Explained(
        "This worker can't turn the job into a request, such as messages for a model whose template refuses them.",
        "The message says.",
    ),
    "result_not_storable": Explained(
        "The result can't be written to the database. Not billed.",
        "Report it.",
    ),
    "internal_error": Explained(
        "The model's tokens can't be turned into text.",
        "Report it.",
    ),
    "workers_lost": Explained(
        "`max_worker_losses` workers were lost while they ran it.",
        "Look at the workers' logs, then submit again.",
    ),
    "engine_crashes": Explained(
        "`max_solo_crashes` engines died while they ran nothing but this job, each after it had passed its self-test.",
        "The dead letter holds the evidence. Change what is unusual about the job; if nothing is, report it.",
    ),
    "attempts_exhausted": Explained(
        "`max_attempts` attempts failed by transient errors: what serves the model broke each of them off. The attempts' rows say how.",
        "Look at the upstream's log, then submit again.",
    ),
}

# In a line of a batch's error file, or in the batch's `errors.data`; some are OpenAI's names for codes of the API, which its face has, too.
LINE_CODES: Mapping[str, Explained] = {
    "batch_expired": Explained(
        "The batch's window was over before this line had an answer. If it had begun to write, the message names the job that has what was written.",
        "Send the line again, in a batch with a longer `completion_window` or another tier.",
    ),
    "batch_cancelled": Explained(
        "The batch was cancelled before this line had an answer. If it had begun to write, the message names the job that has what was written.",
        "Nothing; or send the line again.",
    ),
    "cancelled": Explained(
        "The line's job was cancelled by itself.",
        "Nothing; or send the line again.",
    ),
    "result_gone": Explained(
        "The job's result was deleted before the batch had read it: it is kept for too short a time.",
        "Raise `output_retention_s`, or the tenant's `content_retention_s`, and send the line again.",
    ),
    "context_length_exceeded": Explained(
        "Prompt and wanted output don't fit into the model's context: `prompt_too_long` in OpenAI's words.",
        "Shorten the prompt, or ask for fewer tokens.",
    ),
    "insufficient_quota": Explained(
        "A budget can't hold what this may use at most: `budget_exhausted` in OpenAI's words. A line has it where even an empty window of the budget couldn't.",
        "Ask for less, or have the budget raised.",
    ),
    "model_not_found": Explained(
        "No worker has ever registered this model, or none was named and there is no default: `unknown_model` in OpenAI's words. The message lists those that are known.",
        "Name a known one, or start a worker that serves it.",
    ),
    "invalid_api_key": Explained(
        "No API key, or one that is malformed, unknown, expired or revoked: `unauthenticated` in OpenAI's words.",
        "Use a valid key; `penstock keys create` makes one.",
    ),
    "rate_limit_exceeded": Explained(
        "The key or its tenant submits faster than it may: `rate_limited` in OpenAI's words. Nothing was taken.",
        "Come back after `Retry-After`, or have the limit raised.",
    ),
    "invalid_json_line": Explained(
        "The line isn't one JSON object in UTF-8; the message says where.",
        "Mend the line: one object, on one line.",
    ),
    "unknown_parameter": Explained(
        "Beside `custom_id`, `method`, `url` and `body` the line has another member.",
        "Take it out, or put it into `body`.",
    ),
    "missing_required_parameter": Explained(
        "The line lacks `custom_id`, `method`, `url` or `body`.",
        "Add what `param` names.",
    ),
    "invalid_method": Explained(
        "The line's `method` isn't `POST`.",
        "Write `POST`.",
    ),
    "mismatched_endpoint": Explained(
        "The line's `url` isn't the batch's `endpoint`.",
        "Mend the line, or make the batch with its `url` as endpoint.",
    ),
    "invalid_type": Explained(
        "The line's `body` isn't an object.",
        "Write the body as a JSON object, not as a text.",
    ),
    "invalid_custom_id": Explained(
        "The line's `custom_id` isn't a text of 1 to 512 characters, or holds U+0000.",
        "Give it another.",
    ),
    "duplicate_custom_id": Explained(
        "An earlier line has the same `custom_id`; the message says which.",
        "Give each line its own.",
    ),
    "line_too_long": Explained(
        "The line has more bytes than one may have (`max_body_bytes`).",
        "Shorten it; lines behind it may not have been looked at.",
    ),
    "too_many_lines": Explained(
        "The file has more lines than a batch may have (`max_batch_lines`).",
        "Cut it into several files.",
    ),
    "empty_file": Explained(
        "The file holds no line.",
        "Upload one that does.",
    ),
    "file_not_found": Explained(
        "The batch's file was deleted before it was read.",
        "Upload it again, and make another batch.",
    ),
    "more_errors": Explained(
        "More lines are wrong than are named; the message says how many.",
        "Mend those that are named, then look again.",
    ),
}
