"""`bp schema`: the JSON Schema of the spec format, for editors that complete and check TOML files."""

from __future__ import annotations

import json
from typing import Any

import click

from bpcli.commands.shared_options import Common, shared

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec: tables, keys, types and ranges. What equations mean is beyond a schema."""
    from bpcli.spec.schema import ARRAYS, Document

    schema = Document.model_json_schema(by_alias=True)
    for table, model in ARRAYS.items():  # x = ["n"] stands for x = { shape = ["n"] }
        array = schema["properties"][table]["additionalProperties"]
        shape = schema["$defs"][model.__name__]["properties"]["shape"]
        schema["properties"][table]["additionalProperties"] = {"anyOf": [array, shape]}
    return {"$schema": _DIALECT, **schema, "title": "A spec of bp"}


def schema_text() -> str:
    """The schema as the text of its file."""
    return json.dumps(json_schema(), indent=2) + "\n"


@click.command()
@click.option("-o", "--out", metavar="SCHEMA.json", help="Output file; without it, the schema is printed.")
@shared("quiet")
def schema(out: str | None, common: Common) -> int:
    """Print the JSON Schema of the spec format, by which editors complete and check specs.

    Editors with a TOML language server read it where a spec begins with the line `#:schema ./SCHEMA.json`.
    """
    from bpcli.problem.array_files import check_writable, replace_file

    text = schema_text()
    if out is None:
        click.echo(text, nl=False)
        return 0
    check_writable(out)
    replace_file(out, lambda stream: stream.write(text.encode()))
    common.note(f"wrote {out}")
    return 0
