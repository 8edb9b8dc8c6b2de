"""Signatures of compiled functions, with types: taken from the stubs, because C knows only the names.

Names of a stub's own that begin with an underscore stand for what they are assigned; type variables lose theirs.
"""

import ast
import copy
import functools
import importlib.util
import inspect
from pathlib import Path


class Expand(ast.NodeTransformer):
    """Replaces a stub's private names by what readers know."""

    def __init__(self, tree):
        self.names = {}
        for node in tree.body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=value)
                ) if name.startswith("_"):
                    variable = isinstance(value, ast.Call) and ast.unparse(value.func) == "TypeVar"
                    self.names[name] = ast.Name(name.lstrip("_")) if variable else value

    def visit_Name(self, node):
        found = self.names.get(node.id)
        return node if found is None else self.visit(found)


@functools.cache
def stub(module):
    """The functions of a module's stub by qualified name (of overloads the last), and its private names; or None."""
    spec = importlib.util.find_spec(module)
    path = Path(spec.origin).parent / f"{module.rpartition('.')[2]}.pyi" if spec and spec.origin else None
    if path is None or not path.exists():
        return None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    found[f"{node.name}.{each.name}"] = each
    return found, Expand(tree)


def parts(function, expand, bound):
    """The text of a stub's parameters, without self or cls, and of what it returns."""
    # A copy, because it is changed.
    function = expand.visit(copy.deepcopy(function))
    if bound:
        del (function.args.posonlyargs or function.args.args)[0]
    return f"({ast.unparse(function.args)})", ast.unparse(function.returns)


def from_stub(app, what, name, value, options, signature, returns):
    owner = (
        value if what == "class" else getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
    )
    if what in ("class", "method") and inspect.isclass(owner):
        called = "__init__" if what == "class" else name.rpartition(".")[2]
        module, qualified = owner.__module__, f"{owner.__name__}.{called}"
    elif what == "function":
        module, qualified = value.__module__, value.__name__
    else:
        return None
    found = stub(module) if module and module.startswith("synthex_fast") else None
    if found is None or qualified not in found[0]:
        return None
    function = found[0][qualified]
    fixed = any(ast.unparse(each) == "staticmethod" for each in function.decorator_list)
    text, result = parts(function, found[1], bound="." in qualified and not fixed)
    return text, None if what == "class" else result


def setup(app):
    app.connect("autodoc-process-signature", from_stub)
    return {"parallel_read_safe": True}
