"""Recipes: any part of the library as ``{class_path, init_args}``, and back.

One grammar serves the YAML files, the saved config of a run and the card of an export. A recipe is data: building one
constructs subclasses of the type that was asked for and nothing else.
"""

import copy
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from ssl_med.errors import UserError

T = TypeVar("T")
Recipe = dict[str, Any]


def recipe(thing: object) -> Recipe:
    """Read an object's constructor arguments back; every class of the library keeps them under their own names.

    A thing that was built from another recipe (``load_backbone``) answers with that of what it is.

    Raises:
        TypeError: an argument is not kept by the object.
    """
    init_args = {}
    for name, parameter in inspect.signature(type(thing).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(thing, name):
            raise TypeError(f"{type(thing).__name__} does not keep its argument {name!r}: recipe() cannot read it back")
        init_args[name] = _encode(getattr(thing, name))
    return {"class_path": public_path(type(thing)), "init_args": init_args}


def _encode(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or type(value).__name__ == "ModuleList":
        return [_encode(item) for item in cast("list[object]", value)]
    return recipe(value)


def public_path(cls: type) -> str:
    """The shortest dotted path of a class: ``ssl_med.backbones.ViT``, not ``ssl_med.backbones.vit.ViT``."""
    package, _, _ = cls.__module__.rpartition(".")
    if package and getattr(importlib.import_module(package), cls.__qualname__, None) is cls:
        return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def build(plan: Recipe, kind: type[T], where: str = "recipe") -> T:
    """Construct what a recipe names.

    Args:
        plan: ``{class_path, init_args}``, nested as deep as needed.
        kind: the type it must be; anything else is refused before it is built.
        where: how the recipe is called in errors.

    Raises:
        UserError: unknown class or argument (with the nearest valid one), wrong type, or a class that is no ``kind``.
    """
    check(plan, where, kind)
    parser = new_parser()
    parser.add_subclass_arguments(kind, where, required=True)
    return cast(T, instantiate(parser, {where: plan})[where])


def new_parser() -> Any:
    """A parser that raises instead of leaving, and that builds nothing where a config may hold any value.

    jsonargparse would otherwise let a recipe under such a free key construct any class there is.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(instantiate_subclass_spec_in_any=False)
    return ArgumentParser(exit_on_error=False)


def parse(parser: Any, config: Mapping[str, Any]) -> Any:
    """Type-check ``config`` with a jsonargparse parser; its complaint becomes one sentence."""
    from jsonargparse import ArgumentError

    try:
        return parser.parse_object(copy.deepcopy(dict(config)))  # jsonargparse writes into what it is given
    except ArgumentError as error:
        raise UserError(readable(str(error))) from error


def instantiate(parser: Any, config: Mapping[str, Any]) -> Any:
    """Type-check ``config`` and build its objects; a value that a constructor refuses becomes one sentence too."""
    parsed = parse(parser, config)
    try:
        return parser.instantiate(parsed)
    except ValueError as error:
        raise UserError(readable(str(error))) from error


_NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value type",
    "Expected a <class 'NoneType'>",
    "Problem with",
)


def readable(message: str) -> str:
    """jsonargparse's message without its class noise: the lines that name keys and reasons, as one sentence."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(_NOISE) and not (line.startswith("Given") and len(line) > 80)]
    text = " ".join(kept or lines or ["invalid config"]).removeprefix("Parser key ").replace('"', "")
    text = re.sub(r"Import path (\S+) does not correspond to a subclass of (\w+)", r"\1 is not a \2", text)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)[:600]


def check(plan: object, where: str, kind: type | None = None) -> None:
    """Refuse unknown classes, unknown arguments and wrong types anywhere in a recipe, naming the nearest valid one.

    Args:
        plan: ``{class_path, init_args}``, nested as deep as needed.
        where: how the recipe is called in errors.
        kind: the type the outermost class must be.

    Raises:
        UserError: as said; the sentence starts with the dotted key.
    """
    if kind is not None and isinstance(plan, Mapping):
        _check_class(where, kind, str(plan.get("class_path")))
    for key, class_path, init_args in walk(plan, where):
        target = locate(class_path, f"{key}.class_path")
        valid, hints = arguments(target), _hints(target)
        for name, value in init_args.items():
            if valid and name not in valid:
                raise UserError(f"{key}.init_args.{name}: {class_path} has no such argument; {nearest(name, valid)}")
            if name in hints:
                refuse_modules(f"{key}.init_args.{name}", hints[name], value)
                _check_value(f"{key}.init_args.{name}", hints[name], value)


def refuse_settings(where: str, target: Any, settings: Mapping[str, Any]) -> None:
    """:func:`refuse_modules` for all arguments of a class."""
    hints = _hints(target)
    for name, value in settings.items():
        refuse_modules(f"{where}.{name}", hints.get(name, Any), value)


def refuse_modules(key: str, hint: Any, value: object) -> None:
    """No text is read as the name of a module that only an import would do something with.

    jsonargparse imports what a text names wherever a class may stand, before it compares the types.

    Raises:
        UserError: a name of Python's own library, or of a program.
    """
    if isinstance(value, str) and _may_be_class(hint):
        _refuse_module(value, key)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            refuse_modules(f"{key}[{number}]", hint, inner)
    elif isinstance(value, Mapping) and "class_path" not in value:  # a part's own arguments have their own hints
        for name, inner in value.items():
            refuse_modules(f"{key}.{name}", hint, inner)


def _may_be_class(hint: Any) -> bool:
    if get_origin(hint) is Literal or hint is Any:
        return False
    if parts := get_args(hint):
        return any(_may_be_class(part) for part in parts if part is not ...)
    return hint not in (str, int, float, bool, bytes, type(None), Path, list, dict, tuple)


def _refuse_module(name: str, where: str) -> None:
    first, _, rest = name.partition(".")
    if rest and (first in sys.stdlib_module_names or "__main__" in name.split(".")):
        raise UserError(f"{where}: {name} is no part of a training, so its module was not imported")


def _hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)
    except NameError:  # a class of somebody else with names that only a type checker sees
        return {}


def _check_value(key: str, hint: Any, value: Any) -> None:
    """One argument against its annotation; a recipe must name a class of the annotated kind."""
    if isinstance(value, Mapping) and "class_path" in value:
        kinds = [k for k in (*get_args(hint), hint) if isinstance(k, type) and k is not type(None)]
        if kinds:
            _check_class(key, kinds[0], str(value["class_path"]))
        return
    if any(True for _ in walk(value, key)):
        return  # a list of recipes: each is checked when the walk comes to it
    parser = new_parser()
    parser.add_argument("--value", type=hint)
    try:
        parse(parser, {"value": value})
    except UserError as error:
        wanted = getattr(hint, "__name__", None) or str(hint)
        wanted = str(hint).replace("typing.", "") if get_args(hint) else wanted
        raise UserError(f"{key}: expected {wanted}, got {value!r}") from error


def _check_class(key: str, kind: type, class_path: str) -> None:
    """The class a recipe names must be of a kind; a function counts by what it says it returns."""
    target = locate(class_path, f"{key}.class_path")
    made = target if isinstance(target, type) else _hints(target).get("return")
    if not (isinstance(made, type) and issubclass(made, kind)):
        valid = [public_path(cls) for cls in _concrete(kind)]
        raise UserError(f"{key}: {class_path} is no {kind.__name__}; {nearest(class_path, valid)}")


def _concrete(kind: type) -> list[type]:
    found = [] if inspect.isabstract(kind) else [kind]
    return found + [cls for child in kind.__subclasses__() for cls in _concrete(child)]


def walk(plan: object, where: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every ``{class_path, init_args}`` inside ``plan`` with its dotted key, outermost first."""
    if isinstance(plan, Mapping):
        if isinstance(plan.get("class_path"), str):
            yield where, plan["class_path"], dict(plan.get("init_args") or {})
        for name, item in plan.items():
            yield from walk(item, f"{where}.{name}")
    elif isinstance(plan, list | tuple):
        for number, item in enumerate(plan):
            yield from walk(item, f"{where}[{number}]")


def locate(class_path: str, where: str) -> Any:
    """Import the object a dotted path names.

    Raises:
        UserError: there is no such module or name; the nearest name of the module is offered.
    """
    module_path, _, name = class_path.rpartition(".")
    if not module_path:
        raise UserError(f"{where}: {class_path!r} is not a dotted path such as ssl_med.tasks.MAE")
    _refuse_module(class_path, where)
    try:
        module = importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_path}.".startswith(f"{error.name}."):
            raise  # the module exists; something it needs does not
        raise UserError(f"{where}: there is no module {module_path!r} (is its folder on PYTHONPATH?)") from error
    if not hasattr(module, name):
        public = [item for item, value in vars(module).items() if item[0] != "_" and not inspect.ismodule(value)]
        raise UserError(f"{where}: {module_path} has no {name!r}; {nearest(name, public)}")
    return getattr(module, name)


def arguments(target: Any) -> list[str]:
    """Names a class or function takes; empty where it takes anything."""
    parameters = inspect.signature(target.__init__ if isinstance(target, type) else target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    return [name for name in parameters if name != "self"]


def nearest(name: str, valid: list[str]) -> str:
    """Words that lead to the right name: the nearest one, or all of them."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(sorted(valid))}"
