"""What of a JSON schema is enforced, and the schema that grammars are made of: the same to gateway and worker. Pure.

Most keywords reach a grammar as they are. Some are written otherwise first, with the same meaning. What constrains
nothing is left out. What no grammar can say is left out and named: the model is asked for it, and may fail.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from protocol.schemas.choices import all_different, excludes, listed_values, shared_properties, types_of, with_required
from protocol.schemas.patterns import FORMATS, HINTS, NAMES, PATTERNS, as_patterns

Schema = dict[str, Any]

TYPES = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
MOST_NUMBER = 1e18
"""Grammars take no bound of a number beyond."""
LARGEST_DOUBLE = 1.797e308
"""A bound beyond says nothing of numbers that programs hold."""
MOST_NAMES = 200
"""Names of properties that are written out where a schema lists them apart from their values."""
MOST_BRANCHES = 64
"""Branches that are compared with each other."""
MOST_HOPS = 16
"""References that are followed, one after the other."""
PATH_CHARS = 100
"""Of a name in a place."""
APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas", "not")
DYNAMIC = ("$dynamicRef", "$recursiveRef")
NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
MAPS = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLES = ("items", "additionalItems", "additionalProperties")
ANNOTATIONS = ("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly")


class SchemaError(ValueError):
    """A schema that is none: where in it, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path or 'the schema'} {reason}")


class Enforceable(NamedTuple):
    """A schema as grammars take it, and the places of all that it leaves to the model, such as `properties.a.not`."""

    schema: Schema
    left: list[str]


def make_enforceable(schema: Mapping[str, Any]) -> Enforceable:
    """Return what a grammar can hold an answer to. Raises `SchemaError`."""
    lowering = _Lowering(schema)
    lowered = lowering.lower(dict(schema), "")
    if not isinstance(lowered, dict):
        lowered = {} if lowered else {"enum": []}
    return Enforceable(lowered, list(dict.fromkeys(lowering.left)))


class _Lowering:
    """One schema on its way; `left` are the places of what is left out of it though it says something."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self.left: list[str] = []

    def lower(self, schema: Any, path: str) -> Any:
        """Return a schema within the root, lowered with all that is in it."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaError(path, "is no schema")
        made = {key: value for key, value in schema.items() if key != "x-guidance"}
        self._lower_inner(made, path)
        if "not" in made and _allows_all(made["not"]):
            return False
        self._lower_references(made, path)
        _lower_types(made, path)
        self._lower_text(made, path)
        self._lower_numbers(made, path)
        self._lower_arrays(made, path)
        self._lower_names(made, schema, path)
        self._lower_objects(made, path)
        self._lower_conditions(made, path)
        self._lower_choice(made, path)
        return made

    def _leave(self, path: str, keyword: str) -> None:
        self.left.append(f"{path}.{keyword}" if path else keyword)

    def _drop(self, made: Schema, keyword: str, path: str, *, silent: bool = False) -> Any:
        """Take a keyword out, which is said unless it says nothing itself."""
        value = made.pop(keyword)
        if not silent:
            self._leave(path, keyword)
        return value

    def _lower_inner(self, made: Schema, path: str) -> None:
        for key in MAPS:
            if isinstance(inner := made.get(key), dict):
                made[key] = {name: self.lower(one, _join(path, key, name)) for name, one in inner.items()}
        for key in (*LISTS, *(("items",) if isinstance(made.get("items"), list) else ())):
            if isinstance(listed := made.get(key), list):
                made[key] = [self.lower(one, f"{_join(path, key)}[{at}]") for at, one in enumerate(listed)]
        for key in SINGLES:
            if key in made and not isinstance(made[key], list):
                made[key] = self.lower(made[key], _join(path, key))

    # -- references ------------------------------------------------------------

    def _lower_references(self, made: Schema, path: str) -> None:
        for key in DYNAMIC:
            if key in made:
                self._drop(made, key, path)
        for key in ("$dynamicAnchor", "$recursiveAnchor"):
            made.pop(key, None)
        target = made.get("$ref")
        if target is None:
            return
        if not isinstance(target, str):
            raise SchemaError(_join(path, "$ref"), "is no text")
        if target.startswith("#/"):
            if self._find(target) is None:
                raise SchemaError(_join(path, "$ref"), f"names {target!r}, which is not there")
            # Where what it names has gone to.
            made["$ref"] = target.replace("/oneOf/", "/anyOf/")
        elif not target.startswith("#") and not target.startswith(str(self._root.get("$id") or "\0")):
            self._drop(made, "$ref", path)

    def _find(self, pointer: str) -> Any:
        """Return what a pointer into the root names; None where it leads nowhere."""
        found: Any = self._root
        for part in pointer.removeprefix("#").split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                return None
        return found

    def _resolve(self, schema: Any) -> Mapping[str, Any]:
        """Return a schema with what its reference brings, one after the other."""
        found = schema if isinstance(schema, Mapping) else {}
        for _ in range(MOST_HOPS):
            target = found.get("$ref")
            if not isinstance(target, str) or not target.startswith("#"):
                break
            named = self._find(target.replace("/anyOf/", "/oneOf/")) or self._find(target)
            if not isinstance(named, Mapping):
                break
            found = {**named, **{key: value for key, value in found.items() if key != "$ref"}}
        return found

    # -- values ------------------------------------------------------------------

    def _lower_text(self, made: Schema, path: str) -> None:
        name = made.get("format")
        if name is not None and name not in FORMATS:
            del made["format"]
            texts = "string" in types_of(made) if types_of(made) else True
            spelled = "pattern" in made or any("pattern" in one for one in _schemas(made.get("allOf")))
            if name == "ipvanyaddress":
                _add_condition(made, {"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]})
            elif isinstance(name, str) and name in PATTERNS and not spelled:
                made["pattern"] = PATTERNS[name]
            elif texts and not spelled and name not in HINTS:
                # Libraries that spell a format out beside it mean nothing else by it.
                self._leave(path, "format")
        if isinstance(pattern := made.get("pattern"), str):
            self._lower_pattern(made, pattern, path)

    def _lower_pattern(self, made: Schema, pattern: str, path: str) -> None:
        plain = as_patterns(pattern)
        if plain is None:
            # What libraries write for durations is the format once more.
            self._drop(made, "pattern", path, silent=made.get("format") == "duration" and pattern.startswith("^P(?:("))
            return
        *conditions, made["pattern"] = plain
        for one in conditions:
            _add_condition(made, {"pattern": one})

    def _lower_numbers(self, made: Schema, path: str) -> None:
        for bound in ("Minimum", "Maximum"):
            # Draft 4 had a switch beside the bound.
            if isinstance(switch := made.get(f"exclusive{bound}"), bool):
                del made[f"exclusive{bound}"]
                if switch and bound.lower() in made:
                    made[f"exclusive{bound}"] = made.pop(bound.lower())
        if types_of(made) and types_of(made) <= {"integer", "null"}:
            return
        for key in NUMERIC:
            value = made.get(key)
            if isinstance(value, int | float) and abs(value) > MOST_NUMBER:
                self._drop(made, key, path, silent=abs(value) >= LARGEST_DOUBLE)

    def _lower_arrays(self, made: Schema, path: str) -> None:
        if "uniqueItems" in made:
            few = isinstance(most := made.get("maxItems"), int) and most <= 1
            self._drop(made, "uniqueItems", path, silent=made["uniqueItems"] is not True or few)
        least, most = made.pop("minContains", 1), made.pop("maxContains", None)
        if "contains" in made:
            anything = _allows_all(made["contains"])
            if anything and isinstance(least, int):
                made["minItems"] = max(least, made.get("minItems") or 0)
            if anything and isinstance(most, int):
                made["maxItems"] = min(most, made.get("maxItems", most))
            self._drop(made, "contains", path, silent=anything or (least == 0 and most is None))
        self._lower_unevaluated(made, "unevaluatedItems", "items", path)

    def _lower_unevaluated(self, made: Schema, keyword: str, plain: str, path: str) -> None:
        if keyword not in made:
            return
        value = made[keyword]
        alone = not any(key in made for key in APPLICATORS)
        if alone and not _allows_all(value):
            made.setdefault(plain, self.lower(value, _join(path, keyword)))
        self._drop(made, keyword, path, silent=alone or _allows_all(value))

    # -- objects -----------------------------------------------------------------

    def _lower_names(self, made: Schema, schema: Schema, path: str) -> None:
        """Write names of properties out, by one or by an expression, with what their values must be."""
        patterns = made.get("patternProperties")
        for pattern in [*patterns] if isinstance(patterns, dict) else ():
            if as_patterns(pattern) != [pattern]:
                made["patternProperties"].pop(pattern)
                self._leave(path, "patternProperties")
        if "propertyNames" not in made:
            return
        names = self._resolve(made.pop("propertyNames"))
        said = {key: value for key, value in names.items() if key not in (*ANNOTATIONS, "type", "$defs")}
        if schema["propertyNames"] is True or (not said and "string" in (types_of(names) or {"string"})):
            return
        values = made.get("additionalProperties", True)
        plain = not patterns and not any(key in made for key in APPLICATORS)
        listed = names.get("enum", [names["const"]] if "const" in names else None)
        if plain and said.keys() <= {"enum", "const"} and isinstance(listed, list) and len(listed) <= MOST_NAMES:
            known = made.get("properties") or {}
            texts = [name for name in listed if isinstance(name, str)]
            made["properties"] = {name: known.get(name, values) for name in texts}
            made["additionalProperties"] = False
            return
        pattern = _name_pattern(said)
        written = as_patterns(pattern) if pattern is not None else None
        if plain and written and len(written) == 1 and not made.get("properties"):
            made["patternProperties"] = {written[0]: values}
            made["additionalProperties"] = False
            return
        self._leave(path, "propertyNames")

    def _lower_objects(self, made: Schema, path: str) -> None:
        required = made.get("required")
        needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        optional = (made.get("properties") or {}).keys() - needed
        least, most = made.get("minProperties"), made.get("maxProperties")
        if isinstance(least, int) and (least <= len(needed) or optional):
            self._drop(made, "minProperties", path, silent=least <= len(needed))
        if isinstance(most, int) and optional:
            closed = made.get("additionalProperties") is False and not made.get("patternProperties")
            enough = closed and most >= len(made.get("properties") or {})
            self._drop(made, "maxProperties", path, silent=enough)
        self._lower_unevaluated(made, "unevaluatedProperties", "additionalProperties", path)
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            if isinstance(rules := made.get(keyword), dict):
                silent = all(_allows_all(rule) or rule == [] or _within(rule, needed) for rule in rules.values())
                self._drop(made, keyword, path, silent=silent)
            else:
                made.pop(keyword, None)

    # -- logic -------------------------------------------------------------------

    def _lower_conditions(self, made: Schema, path: str) -> None:
        if "not" in made:
            self._drop(made, "not", path, silent=made["not"] is False)
        branches = [made.pop(key) for key in ("then", "else") if key in made]
        if "if" in made:
            self._drop(made, "if", path, silent=all(map(_allows_all, branches)))

    def _lower_choice(self, made: Schema, path: str) -> None:
        """Write `oneOf` as `anyOf`, which is the same where no answer fits two branches."""
        branches = made.get("oneOf")
        if not isinstance(branches, list):
            return
        del made["oneOf"]
        exact, branches = self._told_apart(branches)
        if not exact:
            self._leave(path, "oneOf")
        if "anyOf" in made:
            _add_condition(made, {"anyOf": branches})
        else:
            made["anyOf"] = branches

    def _told_apart(self, branches: list[Any]) -> tuple[bool, list[Any]]:
        """Return whether no answer fits two branches, and the branches, each with the tag that tells them apart."""
        if len(branches) < 2 or all_different([listed_values(branch) for branch in branches]):
            return True, branches
        if len(branches) > MOST_BRANCHES:
            return False, branches
        facts = [self._resolve(branch) for branch in branches]
        for tag in shared_properties(facts):
            if all_different([listed_values(self._resolve(one["properties"][tag])) for one in facts]):
                # Default tags are optional: a branch without its tag could be any of them.
                return True, [with_required(one, tag) for one in branches]
        pairs = [(one, other) for at, one in enumerate(facts) for other in facts[at + 1 :]]
        return all(excludes(one, other) for one, other in pairs), branches


def _join(path: str, *parts: str) -> str:
    named = [part if len(part) <= PATH_CHARS else f"{part[:PATH_CHARS]}…" for part in parts]
    return ".".join([path, *named] if path else named)


def _lower_types(made: Schema, path: str) -> None:
    if "type" not in made:
        return
    found = made["type"]
    listed = [found] if isinstance(found, str) else found
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise SchemaError(_join(path, "type"), "is no type of JSON")
    if "any" in listed:
        # Draft 3 and some frameworks: no constraint.
        del made["type"]
        return
    for one in listed:
        if one not in TYPES:
            raise SchemaError(_join(path, "type"), f"is {one!r}, which is no type of JSON")


def _allows_all(schema: Any) -> bool:
    return schema is True or (isinstance(schema, dict) and not schema.keys() - {*ANNOTATIONS})


def _within(rule: Any, needed: set[str]) -> bool:
    return isinstance(rule, list) and {name for name in rule if isinstance(name, str)} <= needed


def _schemas(listed: Any) -> Iterator[Mapping[str, Any]]:
    yield from (one for one in listed if isinstance(one, dict)) if isinstance(listed, list) else ()


def _add_condition(made: Schema, condition: Schema) -> None:
    made["allOf"] = [*(made.get("allOf") or []), condition]


def _name_pattern(said: Mapping[str, Any]) -> str | None:
    """Return what is said of a name as an expression; None where one can't say it."""
    if said.keys() == {"pattern"}:
        return said["pattern"] if isinstance(said["pattern"], str) else None
    if said.keys() == {"format"}:
        return {**NAMES, **PATTERNS}.get(str(said["format"]))
    least, most = said.get("minLength", 0), said.get("maxLength")
    if not said or said.keys() - {"minLength", "maxLength"} or not isinstance(least, int):
        return None
    return rf"^[\s\S]{{{least},{'' if most is None else most}}}$"
