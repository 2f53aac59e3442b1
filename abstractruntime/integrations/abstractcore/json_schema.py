"""Whether a JSON value fits a JSON schema, and what is wrong, in words: by way of the package `jsonschema`.

A schema without `$schema` is one of draft 2020-12. `$ref` reaches definitions of the same schema; nothing is fetched.
"""

from __future__ import annotations

from typing import Any

from .extra import needed

#: problems that are told of one value
_MOST = 20


def problems(value: Any, schema: Any) -> list[str]:
    """What keeps `value` from fitting `schema`; empty when it fits.

    Raises ImportError without `jsonschema`.

    >>> problems({"n": "1"}, {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n", "m"]})
    ["$: 'm' is a required property", "$.n: '1' is not of type 'integer'"]
    """
    jsonschema, referencing = needed("jsonschema"), needed("referencing")
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator.check_schema(schema)
        found = list(validator(schema, registry=referencing.Registry()).iter_errors(value))
    except jsonschema.SchemaError as error:
        return [f"$: the schema itself is none: {error.message}"]
    except referencing.exceptions.Unresolvable as error:
        return [f"$: the schema refers to {error.ref!r}, which it does not have"]
    except RecursionError:
        return ["$: the schema refers to itself without end"]
    found.sort(key=lambda error: error.json_path)
    return [f"{error.json_path}: {error.message:.200}" for error in found[:_MOST]]
