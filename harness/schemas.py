"""The JSON Schemas of what kdbench prints and reads, made of the very types that write and read it."""

import importlib
from dataclasses import dataclass
from typing import Any

from kdbench.kd.errors import unknown

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Document:
    """One kind of document."""

    what: str
    "Which one it is, in words."
    type: str
    "Module and name of the type behind it; a function that returns a schema where no one type is."
    schema: str | None = None
    "Name and number in its key `schema`; None of what has none, and where the type says it."
    is_read: bool = False
    "Whether kdbench reads it from a file of the user's: then it may hold no other key."


DOCUMENTS = {
    "audit": Document("kdbench audit --format json", "kdbench.audits.report.render:AuditObject"),
    "mutate": Document("kdbench mutate --format json", "kdbench.harness.mutation.pages:MutateObject"),
    "run": Document("kdbench run --json", "kdbench.harness.study:StudySummary", "kdbench.run/1"),
    "compare": Document("kdbench compare --json", "kdbench.harness.analysis.compared:Compared", "kdbench.compare/1"),
    "verify": Document("kdbench verify --json", "kdbench.harness.analysis.verify:VerifyObject"),
    "trial": Document("a trial's result.json", "kdbench.harness.records.record:Result"),
    "epoch": Document("a line of a trial's curve.jsonl", "kdbench.harness.records.record:EpochLine"),
    "records": Document("a study's study.json", "kdbench.harness.records.study_file:StudyFile"),
    "study": Document("a study file, TOML", "kdbench.harness.schemas:_study", is_read=True),
    "contract": Document("a contract (kdbench.lock), TOML", "kdbench.harness.contract:Contract", is_read=True),
    "config": Document("[tool.kdbench] of pyproject.toml", "kdbench.harness.contract:Choices", is_read=True),
}


def schema(name: str, *, strict: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of a document; `strict` forbids keys that the schema does not name.

    A document that kdbench writes may have more keys in a later version, and its schema lets them be; one that it reads
    may not. An unknown name is an InputError with the nearest one.
    """
    if name not in DOCUMENTS:
        raise unknown("document", name, DOCUMENTS)
    document = DOCUMENTS[name]
    module, _, word = document.type.partition(":")
    thing = getattr(importlib.import_module(module), word)
    closed = strict or document.is_read
    made = thing() if document.type.startswith(f"{__name__}:") else of_type(thing, closed)
    if document.schema is not None:
        made["properties"] = {"schema": {"const": document.schema, "type": "string"}, **made["properties"]}
        made["required"] = ["schema", *made["required"]]
    return {"$schema": DIALECT, "title": f"kdbench {name}", "description": document.what, **made}


def of_type(kind: Any, closed: bool) -> dict[str, Any]:
    """Return the schema of a dataclass or a typed dictionary, the texts under its fields as their descriptions."""
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(use_attribute_docstrings=True, extra="forbid" if closed else "ignore")
    # A bare type takes no configuration from here; what stands in a tuple does.
    whole = TypeAdapter(tuple[kind], config=config).json_schema(mode="serialization")
    defined = whole["$defs"]
    made = defined.pop(whole["prefixItems"][0]["$ref"].rpartition("/")[2])
    return _untitled({**made, **({"$defs": defined} if defined else {})})


def _untitled(value: Any) -> Any:
    """Leave out the titles that pydantic makes of names, which say nothing more; a property called title stays."""
    if isinstance(value, list):
        return [_untitled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: ({name: _untitled(item) for name, item in inner.items()} if key == "properties" else _untitled(inner))
        for key, inner in value.items()
        if not (key == "title" and isinstance(inner, str))
    }


def _study() -> dict[str, Any]:
    """Return the schema of a study file: its tables are made of the recipe, the decision and each method's settings."""
    from kdbench.harness.plan.preset import Decision, StudyTable
    from kdbench.kd.methods import METHODS
    from kdbench.kd.recipe import Recipe

    def table(kind: Any) -> dict[str, Any]:
        made = of_type(kind, closed=True)
        return {**made, "required": []}

    recipe = table(Recipe)
    text: dict[str, Any] = {"type": "string"}
    tried: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "number"}}}
    methods: dict[str, Any] = {
        "type": "object",
        "properties": {name: table(kind.Settings) for name, kind in METHODS.items()},
        "description": "Settings by method.",
    }
    return {
        "type": "object",
        "properties": {
            "study": of_type(StudyTable, closed=True),
            "decision": table(Decision),
            "recipe": recipe,
            "teacher": {**recipe, "description": "What the teachers' recipe has otherwise."},
            "cuda": {**recipe, "description": "What the recipe has otherwise on a GPU."},
            "method": methods,
            "pair": {
                "type": "object",
                "additionalProperties": {**methods, "properties": {"stages": text, **methods["properties"]}},
                "description": "Settings by pair and method; stages says which of teacher and student go together.",
            },
            "grid": {
                "type": "object",
                "properties": {"seeds": text},
                "additionalProperties": {**tried, "description": "Values to be tried, by setting of the method."},
                "required": ["seeds"],
            },
        },
        "required": ["study", "recipe"],
        "additionalProperties": False,
    }
