"""What of a foreign error message may be kept with a job? Words from a list of ours: then it can't quote what the caller sent.

Libraries and servers quote the schema, the pattern or the prompt that they refuse. A job's error outlives these, goes into
webhooks and is read by operators, so it must hold none of them. To look for the caller's text in the message would miss what was
escaped or cut; to let through known words only can't.
"""

import re

MAX_CHARS = 300
_KNOWN = """
    a above after all allowed already an and any are array as at available backreferences be because been before below between boolean
    brace bracket break broken by bytes can cannot capture character characters circular class closing colon column compile compiled
    complex connection constraint contain contains content context could count counted data decode default definition depth did didn't do
    does doesn't done duplicate either empty end ended engine enough enum eof error escape exceed exceeded exceeds exist exists expected
    expecting expression failed fetch few field fields flag float following for format found from generate given grammar greater group has
    have hexadecimal however if in including incompatible input integer internal invalid is isn't it item items its json key keys keyword
    language larger least length less lexer limit line list literal long look-ahead look-around look-behind lookarounds many max maximum
    may memory min minimum missing model more most must name negative nested no not nothing null number numbers object of on one only
    operator optional or out output overflow parameter parenthesis parse parser parsing past pattern please pointer positive present
    prompt property quantifier quota range rate reached recursion recursive reduce reference referenced refused regex registry rejected
    repetition request requested required requires resource resources retriever retrieving rule rules same schema sequence server short
    should single size small smaller source spell start state statement states status stop stream string strings structured such supported
    syntax terminal text than that the then there they this time timed timeout to token tokens too total trailing type types unavailable
    unclosed undefined unexpected unicode unimplemented unique unknown unopened unrecognized unsatisfiable unsupported unterminated up use
    used valid value values was we were when where which while with without word would wrong yet you your zero
    additionalproperties allof anyof const dependentrequired dependentschemas else exclusivemaximum exclusiveminimum maxcontains
    maxitems maxlength maxproperties max_tokens mincontains minitems minlength minproperties multipleof oneof patternproperties
    prefixitems properties propertynames response_format structured_outputs temperature top_k top_p unevaluateditems
    unevaluatedproperties uniqueitems $ref $defs
"""
_WORDS = frozenset(_KNOWN.split())
_EXCERPT = re.compile(r"^(?: {4}| *\d+ \|).*$|^ *\^+ *$", re.MULTILINE)  # a line of the source, and what points into it
_QUOTED = re.compile(r"\"((?:\\.|[^\"\\])*)\"|'((?:\\.|[^'\\])*)'(?!\w)")
_TOKENS = {")": "closing parenthesis", "]": "closing bracket", "}": "closing brace", ":": "colon", "\\n": "line break"}
# A regex's error as llguidance tells it, once what it quotes is taken out: twice that it is one.
_OF_REGEX = re.compile(r"(?:invalid regex\s+…\s+\(in regex\):\s*)?regex parse error:\s*error:")
_AGAIN = re.compile(r" \(at \"(?:\\.|[^\"\\])*\" \(.*\)\)$", re.MULTILINE)  # what was found, a second time
_KEYS = re.compile(r"(?<=keys: )\[(.*)\]$")  # a list of keywords
_PLACE = re.compile(r"^(?:at )?\d{1,6}\(\d{1,6}\)(?=:)|\b(?:at )?line \d{1,6} column \d{1,6}\Z")
_COMPACT = re.compile(r"(\d{1,6})\((\d{1,6})\)")  # llguidance's way to tell line and column
_PIECE = re.compile(r"[$A-Za-z_]+(?:['-][A-Za-z]+)*|[\s:;,.()=<>]+|[^\s]")


def plain_words(message: str) -> str:
    """The message as far as it says nothing but known words, with … for the rest; at most `MAX_CHARS` characters.

    Where a parser says in which line and column it stopped, that stays, too.
    """
    text = _EXCERPT.sub("", message[: 64 * MAX_CHARS]).strip()
    place = _PLACE.search(text)
    if place:
        text = f"{text[: place.start()]} {text[place.end() :]}".strip(" :")
    text = _KEYS.sub(r"\1", _AGAIN.sub("", text))
    text = _OF_REGEX.sub("invalid regex:", _QUOTED.sub(lambda quoted: f" {_unquoted(quoted[1] or quoted[2])} ", text))
    text = re.sub(r"\bf64\b", "number", text)
    kept = ""
    for piece in _PIECE.findall(text):
        kept += piece if _is_known(piece) or not piece.strip(" \t\r\n:;,.()=<>") else "…"
        if len(kept) > 16 * MAX_CHARS:
            break
    kept = re.sub(r"[\s(,.=<>]*…[\s…,.()=<>]*", " … ", re.sub(r"\s+", " ", kept))
    kept = re.sub(r"(?:… )+(?=…)|\s+(?=[:;,])", "", kept).strip(" :;,=<>")
    where = _COMPACT.sub(r"line \1 column \2", place[0]) if place else ""
    told = f"{where}: {kept}" if where else kept
    return told if len(told) <= MAX_CHARS else told[: MAX_CHARS - 1] + "…"


def _unquoted(word: str | None) -> str:
    """What is kept of what stands in quotes: a known word, or a mark of punctuation by its name."""
    return word if word is not None and _is_known(word) else _TOKENS.get(word or "", "…")


def _is_known(word: str | None) -> bool:
    return word is not None and word.lower() in _WORDS
