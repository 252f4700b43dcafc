"""What pydantic, Hydra and OmegaConf complain of, in the words of a command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# By pydantic's name of the error; its own words are kept for what is not here.
_INPUT = "input should be "
_PLAIN = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list, [a, b]"),
    **dict.fromkeys(("dict_type", "model_type"), "keys with values, {{a: 1}}"),
    "string_type": "text", "path_type": "a path", "too_short": "of length {min_length} at least",
    "too_long": "of length {max_length} at most",
}  # fmt: skip


def problems(where: str, found: Sequence[tuple[str, Iterable[str], Any]]) -> str:
    """Wrong keys under `where`, each with the names beside it and pydantic's error: `key=value: why; key=value: why`.

    Where a value may be one of several kinds, pydantic has an error for each: they become one, and the error of a
    key inside the value replaces that of the value.
    """
    inner = tuple(key for key, _, _ in found)
    said: dict[str, list[str]] = {}
    for key, beside, error in found:
        if not any(other.startswith(f"{key}.") for other in inner):
            head, why = _problem(".".join(p for p in (where, key) if p), beside, error)
            said.setdefault(head, []).append(why)
    return "; ".join(f"{head}: {' or '.join([why[0], *(w.removeprefix(_INPUT) for w in why[1:])])}"
                     for head, why in said.items())  # fmt: skip


def _problem(key: str, beside: Iterable[str], error: Any) -> tuple[str, str]:
    """key=value, and what is wrong with it."""
    kind, value = error["type"], error["input"]
    head = f"{key}={'null' if value is None else repr(value)}"
    if kind == "extra_forbidden":
        return head, f"unknown key; allowed: {', '.join(beside)}"
    if kind == "missing":
        return key, "is not set"
    if kind in _PLAIN:
        return head, _INPUT + _PLAIN[kind].format(**error.get("ctx", {}))
    return head, error["msg"][0].lower() + error["msg"][1:]


def one_line(error: Exception) -> str:
    """What Hydra, OmegaConf or YAML says, without links and the lines that name its own types."""
    lines = [line.partition(" expecting {")[0].strip(" ^") for line in str(error).splitlines()]
    key = getattr(error, "full_key", None)
    said = "; ".join(x for x in lines if x and not x.startswith(("See http", "full_key:", "object_type=")))
    said = said.replace("missing EQUAL at '<EOF>'", "it is not of the form key=value")
    said = said.replace("LexerNoViableAltException:", "cannot be read:")
    return f"{key}: {said}" if key else said
