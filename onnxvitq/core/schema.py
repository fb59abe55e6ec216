"""The JSON schema of a record of options: editors complete and check a configuration file with it."""

from typing import Any

from onnxvitq.core.options import NamedOption, Options, options_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAMES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    tuple: "array",
    dict: "object",
}


def json_schema(record: type[Options], title: str) -> dict[str, Any]:
    """A schema of the documents that ``record.from_dict`` reads (JSON Schema, draft 2020-12).

    Rules between options, such as one budget at most, are not in it: they are checked when the file is read.
    """
    return {
        "$schema": DIALECT,
        "title": title,
        "type": "object",
        "additionalProperties": False,
        "properties": {named.name: _schema_of(named) for named in options_of(record)},
    }


def _schema_of(named: NamedOption) -> dict[str, Any]:
    described = {"description": named.option.help, **_schema_of_value(named)}
    if named.type.optional:
        described["type"] = [described["type"], "null"]
        if "enum" in described:
            described["enum"] = [*described["enum"], None]
    return described if named.required else described | {"default": named.write(named.default)}


def _schema_of_value(named: NamedOption) -> dict[str, Any]:
    kind, item = named.type.kind, named.type.item
    if kind is tuple:
        return {"type": "array", "items": {"type": NAMES[item], **_limits(named)}}
    if kind is dict:
        return {"type": "object", "additionalProperties": {"type": NAMES[item], **_limits(named)}}
    return {"type": NAMES[kind], **_limits(named)}


def _limits(named: NamedOption) -> dict[str, Any]:
    option = named.option
    limits: dict[str, Any] = {"enum": list(named.type.choices), "minimum": option.least, "maximum": option.most}
    if option.pattern:
        limits["pattern"] = f"^({option.pattern})$"
    return {name: limit for name, limit in limits.items() if limit not in (None, [])}
