"""YAML files read and checked: whatever is wrong in one is told in one sentence."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from fcn.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
DEEP = 100


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A sentence about a name that is not there, with the nearest ones that are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(names))}."
    return f"no {kind} {name!r}; {hint}"


def read_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        UserError: it is not there, is no text, or no YAML as this project wants it.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file ({error}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{path}{where}: not valid YAML: {problem}.") from None
    except Exception as error:  # of a value, such as the date 2016-02-30, or of too deep a nesting
        raise UserError(f"{path}: not valid YAML: {error}.") from None


def _parsed(text: str) -> Any:
    """Read by libyaml, four times as fast, if it can: every process reads a dozen files.

    Whatever is wrong is told by PyYAML's own reader, and too deep a nesting, of which libyaml's
    would die, is left to it.
    """
    if _FastLoader is not None:
        try:
            if _flat(text):
                return yaml.load(text, Loader=_FastLoader)
        except Exception:
            pass
    return yaml.load(text, Loader=_Loader)


def _flat(text: str) -> bool:
    """Is nothing nested deeper than ``DEEP``? Found without recursion, up to the first that is."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEP:
            return False
    return True


class _Constructor(yaml.constructor.SafeConstructor):
    """Keys are text and stand once; numbers are finite, and 1e5 is a whole one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _problem(f"the key {key!r} is not text; put it in quotes", key_node)
            if key in keys:
                raise _problem(f"the key {key!r} stands twice", key_node)
            keys.add(key)
        return super().construct_mapping(node, deep)

    def finite(self, node: Any) -> float:
        value: float = self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise _problem(f"{node.value} is not a finite number", node)
        whole = "e" in node.value.lower() and value.is_integer()
        return int(value) if whole else value


def _problem(text: str, node: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


class _Loader(_Constructor, yaml.SafeLoader):
    """Such YAML, read by PyYAML itself."""


_FastLoader: Any = None  # a PyYAML that was built without libyaml lacks it
if yaml.__with_libyaml__:

    class _FastLoader(_Constructor, yaml.CSafeLoader):  # type: ignore[no-redef]
        """Such YAML, read by libyaml."""


_FLOAT = "tag:yaml.org,2002:float"
_E_NOTATION = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
for _reader in filter(None, (_Loader, _FastLoader)):
    _reader.add_constructor(_FLOAT, _Constructor.finite)
    # YAML 1.1 wants a dot and a signed exponent.
    _reader.add_implicit_resolver(_FLOAT, _E_NOTATION, list("-+0123456789"))


@cache
def protocol(part: str) -> dict[str, Any]:
    """A part of ``config/protocol.yaml``: how the papers measure."""
    found: dict[str, Any] = read_yaml(CONFIG / "protocol.yaml")[part]
    return found


@cache
def suite_schema() -> dict[str, Any]:
    """``config/schemas/suite.yaml``; its ``$defs`` are those of every other file's schema."""
    return read_yaml(CONFIG / "schemas" / "suite.yaml")


def _is_whole(checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Of JSON Schema 100.0 is an integer, and would come to code that counts with it.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole),
)


def check(value: Any, schema: Mapping[str, Any], path: Path) -> None:
    """Validate ``value``; the first problem is a UserError naming file, key and what is allowed."""
    validator = _Validator({**schema, "$defs": suite_schema()["$defs"]})
    errors = sorted(validator.iter_errors(value), key=lambda e: [str(p) for p in e.absolute_path])
    if errors:
        raise UserError(f"{path}: {_explain(errors[0])}")


_NOUNS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _explain(error: jsonschema.ValidationError) -> str:
    """One sentence: where, what is wrong, what is allowed."""
    error = _narrowed(error)
    schema: Any = error.schema
    value: Any = error.instance
    given: Any = error.validator_value
    where = ".".join(str(part) for part in error.absolute_path)
    where = f"{where}: " if where else ""
    meaning = f" ({schema['description'].rstrip('.')})" if "description" in schema else ""
    if "propertyNames" in error.absolute_schema_path:
        return f"{where}{value!r} is not {schema['description']}."
    if error.validator == "not":  # not: {} refuses a key where it would be ignored
        return f"{where}it has no effect {schema['description']}; leave it out."
    if error.validator == "additionalProperties":
        allowed = list(schema.get("properties", {}))
        key = next(str(key) for key in value if key not in allowed)
        near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        scope = f" {schema['title']}" if "title" in schema and "$schema" not in schema else ""
        names = ", ".join(sorted(allowed))
        return f"{where}there is no key {key!r} here{hint}; allowed{scope}: {names}."
    if error.validator == "required":
        return f"{where}the key {next(key for key in given if key not in value)!r} is missing."
    if error.validator == "enum":
        return f"{where}{value!r} is not one of {', '.join(map(str, given))}{meaning}."
    if error.validator == "type":
        kinds = [given] if isinstance(given, str) else given
        nouns = " or ".join(_NOUNS[kind] for kind in kinds)
        return f"{where}{value!r} is not {nouns}{meaning}."
    if error.validator in ("oneOf", "anyOf", "pattern", "const"):
        return f"{where}{value!r} is not of an allowed form{meaning}."
    return f"{where}{error.message}{meaning}."


def _narrowed(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    """Of an error in several alternatives, the one in the alternative that is plainly meant."""
    while error.context:
        branches: dict[Any, list[jsonschema.ValidationError]] = {}
        for inner in error.context:
            branches.setdefault(inner.relative_schema_path[0], []).append(inner)
        wrong_kind = ("type", "const", "required")
        meant = [
            errors
            for errors in branches.values()
            if not any(e.validator in wrong_kind and not e.relative_path for e in errors)
        ]
        if len(meant) != 1:
            break
        error = meant[0][0]
    return error
