"""What `python -m dtrain --help` prints: the groups, and every key with its value, type, range and meaning."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dtrain.compose import compose, compose_with_choices, read
from dtrain.config import CONFIGS, Config
from dtrain.data.build import LOADERS, loader_class
from dtrain.target import arguments_of, completed, model_target

WIDTH, COLUMN = 100, 44
_RANGES = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_NAMES = {"integer": "integer", "number": "number", "string": "text", "null": "null", "boolean": "true | false"}


@dataclass(frozen=True)
class Key:
    """A key as a user types it. value: what it has, as YAML. kind: its type and range. note: what it means."""

    name: str
    value: str
    kind: str
    note: str

    def lines(self) -> str:
        """key=value, and beside it, or below where that is long, what it may be and means."""
        note = self.note.removeprefix(self.kind.removesuffix(" | null")).lstrip(" :,;")
        body = textwrap.wrap(f"{self.kind}  # {note}" if note else self.kind, WIDTH - COLUMN)
        head = textwrap.wrap(f"{self.name}={self.value}", WIDTH - 2, break_on_hyphens=False, subsequent_indent="    ")
        beside = len(head) == 1 and len(head[0]) < COLUMN - 2
        first = f"  {head[0]:{COLUMN - 2}}{body.pop(0)}" if beside else textwrap.indent("\n".join(head), "  ")
        return "\n".join([first, *(" " * COLUMN + line for line in body)])


def text(overrides: list[str]) -> str:
    """The groups and all keys, with the values, model, data and loader that the overrides choose. ConfigError."""
    config = read(compose(overrides))
    choices = compose_with_choices(overrides)[1]
    parts = ["Groups, chosen with group=name:", *map(_group, sorted(p for p in CONFIGS.iterdir() if p.is_dir()))]
    chosen = [f"{group}={name}" for group, name in choices.items() if name and group in ("model", "data", "loader")]
    parts += ["", f"Every key: its value ({' '.join(chosen)}), type, range and meaning."]
    section = ""
    for key in keys(config, choices):
        if (top := key.name.partition(".")[0]) != section:
            section = top
            parts += ["", section]
            if section == "model":
                doc = inspect.getdoc(model_target(config)[0]) or ""
                parts += [textwrap.fill(p, WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
                          for p in doc.split("\n\n")]  # fmt: skip
        parts.append(key.lines())
    return "\n".join(parts)


def keys(config: Config, choices: dict[str, str | None]) -> list[Key]:
    """Every key of the configuration, the chosen model's and loader's own among them."""
    schema = Config.model_json_schema()
    name = str(config.loader.get("name"))
    own = {"name": {"enum": list(LOADERS)}}
    try:
        loader = arguments_of(loader_class(name).__init__).model_json_schema()
    except (ValueError, ImportError):  # its package is not installed
        loader = {"properties": {key: {} for key in config.loader}}
    model = arguments_of(model_target(config)[0].__init__).model_json_schema()
    schema["$defs"] |= loader.get("$defs", {}) | model.get("$defs", {})
    target = {"_target_": {"type": "string"}}
    schema["properties"]["loader"] = {"type": "object", "properties": own | loader["properties"]}
    schema["properties"]["model"] = {"type": "object", "properties": target | model["properties"]}
    notes = _all_notes(choices)
    values = completed(config).model_dump(mode="json", by_alias=True)  # as the schema names keys
    return [Key(k, _yaml(v), words(s, schema["$defs"]), notes.get(k, "")) for k, v, s in _leaves(schema, values)]


def _leaves(schema: dict[str, Any], values: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(key, value, schema) of everything that is no section."""

    def visit(node: dict[str, Any], value: Any, name: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        node = _resolved(node, schema["$defs"])
        if "properties" not in node:
            yield name, value, node
            return
        for key, inner in node["properties"].items():
            yield from visit(inner, value[key], f"{name}.{key}" if name else key)

    return visit(schema, values, "")


def _resolved(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    return defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def words(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """A JSON schema in words: integer > 0 | null."""
    schema = _resolved(schema, defs)
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(words(s, defs) for s in alternatives)
    if allowed := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " | ".join(map(str, allowed))
    kind = schema.get("type", "any value")
    if kind == "array":
        inner = [words(s, defs) for s in schema.get("prefixItems", [])] or [words(schema["items"], defs), "…"]
        return f"[{', '.join(inner)}]"
    if kind == "object":
        named = {k: words(s, defs) for k, s in schema.get("properties", {}).items()}
        other = schema.get("additionalProperties")
        named |= {"<name>": words(other, defs)} if isinstance(other, dict) else {}
        return "{" + ", ".join(f"{k}: {v}" for k, v in named.items()) + "}" if named else "{key: value, …}"
    limits = [f"{sign} {schema[limit]}" for limit, sign in _RANGES.items() if limit in schema]
    name = "path" if schema.get("format") == "path" else _NAMES.get(kind, kind)
    return f"{name} {' and '.join(limits)}".strip()


def _yaml(value: Any) -> str:
    """A value as it may stand behind key=."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def _group(folder: Path) -> str:
    names = ", ".join(sorted(str(f.relative_to(folder).with_suffix("")) for f in folder.rglob("*.yaml")))
    return textwrap.fill(f"{folder.name}: {names}", WIDTH, initial_indent="  ", subsequent_indent="    ")


def _all_notes(choices: dict[str, str | None]) -> dict[str, str]:
    """What the files of the configuration say behind their keys."""
    found = {"model._target_": "the model's class"} | _notes(CONFIGS / "config.yaml", "")
    for group in ("trainer", "loader", "data"):
        found |= _notes(CONFIGS / group / f"{choices[group]}.yaml", f"{group}.")
    model = _model_notes(CONFIGS / "model" / f"{choices['model']}.yaml")
    return found | {k: note for k, note in model.items() if k.startswith("model.")}  # of others they explain a value


def _model_notes(file: Path) -> dict[str, str]:
    """Of a model's file, and of those that it inherits."""
    content = yaml.safe_load(file.read_text())
    inherited = [d for d in content.get("defaults", []) if isinstance(d, str) and d != "_self_"]
    found: dict[str, str] = {}
    for name in inherited:
        folder = CONFIGS if name.startswith("/") else file.parent
        found |= _model_notes(folder / f"{name.lstrip('/')}.yaml")
    return found | _notes(file, "")


def _notes(file: Path, prefix: str) -> dict[str, str]:
    """key -> the comment behind it, of a YAML file."""
    lines = file.read_text().splitlines()
    found: dict[str, str] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            on_line = value.end_mark.line == key.end_mark.line
            end = value.end_mark.column if on_line else key.end_mark.column
            note = lines[key.end_mark.line][end:].partition(" #")[2].strip()
            found.update({prefix + key.value: note} if note else {})
            visit(value, f"{prefix}{key.value}.")

    visit(yaml.compose(file.read_text()), prefix)
    return found
