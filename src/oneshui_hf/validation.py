"""Checks of values that were read from a file against a schema, with the first problem as one sentence.

A schema lists the fields that are used, with their types and bounds. Other fields are accepted, since a later version may write some.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import OneshuiError
from .option_values import shown

MAX_TEXT = 4096  # characters of a text in a schema, for example a path

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0)]


class Schema(BaseModel):
    """The used fields of a JSON object. A value is not converted: "1" is no number, and 1 is no truth value."""

    # Most commands validate few of the schemas, so each is built when it is first used.
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=(), defer_build=True)


def check_fields(schema: type[Schema], value: Mapping[str, Any], file: Path, within: str = "") -> None:
    """Check an object that was read from a file.

    Args:
        schema: Its fields.
        value: The object.
        file: The file, for messages.
        within: Where the object is in the file, for messages.

    Raises:
        OneshuiError: A field is missing, or has another type or a value that is out of range.
    """
    try:
        schema.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = shown(".".join(map(str, (within, *problem["loc"]) if within else problem["loc"])))
        if problem["type"] == "missing":
            raise OneshuiError(f"{file} is not complete: it has no field '{field}'.") from None
        reason = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
        place = f"'{field}'" if field else "it"
        raise OneshuiError(f"{file} is damaged: {place} {shown(reason)}.") from None
