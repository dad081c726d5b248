"""Chat templates of strangers' Z-Image models. A template is a program: Jinja's sandbox keeps it from what is outside,
and not from running for ever or writing gigabytes. So it is read first, and only what cannot do so is run:

- the outer loops go over what is handed in (messages, tools, documents), one more may lie within;
- what is set is never joined from what was set before, so nothing doubles;
- methods, filters and functions are of a list, none of which makes much of little.

Qwen's templates, and every one that only frames messages, are of this kind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

LONGEST = 32_000  # characters; Qwen3's has 4,200
GIVEN = ("messages", "tools", "documents")
FUNCTIONS = ("namespace", "raise_exception", "strftime_now")
METHODS = ("split", "rsplit", "strip", "lstrip", "rstrip", "startswith", "endswith", "removeprefix", "removesuffix",
           "lower", "upper", "get", "items", "keys", "values")  # fmt: skip
FILTERS = ("trim", "tojson", "length", "count", "first", "last", "list", "string", "upper", "lower", "default", "d",
           "safe", "items", "int")  # fmt: skip
STATEMENTS = ("Template", "Output", "TemplateData", "If", "For", "Assign", "Break", "Continue")
EXPRESSIONS = ("Name", "NSRef", "Const", "Tuple", "List", "Dict", "Pair", "Keyword", "CondExpr", "Test", "Getattr",
               "Getitem", "Slice", "Compare", "Operand", "And", "Or", "Not", "Neg", "Sub", "Filter", "Call", "Mod", *(
               JOINING := ("Add", "Concat")))  # fmt: skip


@functools.lru_cache(maxsize=8)
def check_template(template: str) -> None:
    """
    Raises:
        ValueError: it does what a chat template has no need for, in words.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(template) > LONGEST:
        raise ValueError(f"it has {len(template)} characters; {LONGEST} are the most")
    try:
        tree = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        _Reader(tree).check(tree, 0)
    except TemplateError as error:
        raise ValueError(f"it is no template: {str(error)[:100]}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


class _Reader:
    def __init__(self, tree: Any):
        from jinja2 import nodes

        self.nodes: Any = nodes
        targets = [assignment.target for assignment in tree.find_all(nodes.Assign)]
        self.assigned = {name.name for target in targets for name in _with_itself(target, (nodes.Name, nodes.NSRef))}

    def check(self, node: Any, loops: int) -> None:
        kind = type(node).__name__
        if kind not in STATEMENTS and kind not in EXPRESSIONS:
            raise ValueError(f"it has a {kind}")
        special = getattr(self, f"_{kind.lower()}", None)
        if special:
            special(node, loops)
        if kind == "For":
            loops += 1
        for child in node.iter_child_nodes():
            self.check(child, loops)

    def _for(self, node: Any, loops: int) -> None:
        if node.recursive or loops > 1:
            raise ValueError("it loops deeper than over messages and their parts")
        if not self._is_given(node.iter, outer=loops == 0):
            raise ValueError("it loops over something else than what is handed to it")

    def _is_given(self, node: Any, outer: bool = False) -> bool:
        nodes = self.nodes
        if isinstance(node, nodes.Name):
            return node.name not in self.assigned and (not outer or node.name in GIVEN)
        if isinstance(node, nodes.Getitem) and (not outer or isinstance(node.arg, nodes.Slice)):
            return self._is_given(node.node, outer)
        return isinstance(node, nodes.Getattr) and not outer and self._is_given(node.node)

    def _assign(self, node: Any, loops: int) -> None:
        joined = any(type(inner).__name__ in (*JOINING, "List", "Tuple", "Dict") for inner in _with_itself(node.node))
        if joined and any(name.name in self.assigned for name in _with_itself(node.node, self.nodes.Name)):
            raise ValueError("it joins what it has set before, which may double again and again")

    def _getattr(self, node: Any, loops: int) -> None:
        if node.attr.startswith("_"):
            raise ValueError(f"it reaches for {node.attr[:40]!r}, which is outside of a template")

    def _getitem(self, node: Any, loops: int) -> None:
        if isinstance(node.arg, self.nodes.Const) and str(node.arg.value).startswith("_"):
            raise ValueError(f"it reaches for {str(node.arg.value)[:40]!r}, which is outside of a template")

    def _filter(self, node: Any, loops: int) -> None:
        if node.name not in FILTERS:
            raise ValueError(f"it has the filter {node.name[:40]!r}")
        self._small(node, node.name in ("default", "d"))

    def _call(self, node: Any, loops: int) -> None:
        function = node.node
        named = isinstance(function, self.nodes.Name) and function.name in FUNCTIONS
        method = isinstance(function, self.nodes.Getattr) and function.attr in METHODS
        if not (named or method) or node.dyn_args or node.dyn_kwargs:
            name = getattr(function, "attr", None) or getattr(function, "name", None) or type(function).__name__
            raise ValueError(f"it calls {name[:40]!r}")

    def _mod(self, node: Any, loops: int) -> None:
        """The remainder of a loop's count; of a text, it would be formatting."""
        left = node.left
        if not (isinstance(left, self.nodes.Getattr) and getattr(left.node, "name", "") == "loop"):
            raise ValueError("it has a Mod")

    def _small(self, node: Any, anything: bool) -> None:
        """A filter's arguments: `tojson(indent=10**9)` would write a gigabyte of blanks."""
        values = [*node.args, *(keyword.value for keyword in node.kwargs)]
        small = all(
            isinstance(value, self.nodes.Const) and (not isinstance(value.value, int) or -16 <= value.value <= 16)
            for value in values
        )
        if not (anything or small) or node.dyn_args or node.dyn_kwargs:
            raise ValueError(f"it has the filter {node.name[:40]!r} with arguments of its own")


def _with_itself(node: Any, kinds: Any = None) -> Iterable[Any]:
    """`node` and all below it, of these kinds."""
    from jinja2 import nodes

    found = [node, *node.find_all(nodes.Node)]
    return [each for each in found if kinds is None or isinstance(each, kinds)]
