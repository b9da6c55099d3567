"""What mutation testing changes in a module: one place at a time. See `tests.mutants`."""

from __future__ import annotations

import ast
import copy
import re
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.conftest import REPOSITORY


@dataclass(frozen=True)
class Mutant:
    """One change; ``apply`` makes it in a fresh tree of the module."""

    path: str
    scope: str
    """Qualified name of the outermost function, or empty: outside of functions, or a default or decorator."""
    change: str
    """``old → new``, with a number where a function has the same more than once."""
    source: str
    """The line of the module where it is. ``1 → 2`` in another line than yesterday is another change."""
    lines: tuple[int, int]
    apply: Callable[[ast.Module], None]

    @property
    def key(self) -> str:
        """What it says; a run chooses by this."""
        return f"{self.path} · {self.scope or 'module'} · {self.change}"

    @property
    def identity(self) -> tuple[str, str]:
        """What it says, and of which line: what is known of it holds for this alone."""
        return self.key, self.source


_COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.MatMult: ast.Add,
}  # fmt: skip
_SWAP = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "sorted": "list",
         "reversed": "list", "argmax": "argmin", "argmin": "argmax", "minimum": "maximum", "maximum": "minimum",
         "logical_and": "logical_or", "zeros": "ones", "ones": "zeros", "cumsum": "cumprod", "sum": "mean",
         "mean": "sum"}  # fmt: skip
_BUILT_IN = frozenset({"min", "max", "any", "all", "sorted", "reversed"})


def _alternatives(node: ast.AST, in_message: bool) -> Iterator[ast.AST]:
    """Every node that may stand in its place."""
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                other = copy.deepcopy(node)
                other.ops[place] = _COMPARE[type(operator)]()
                yield other
        case ast.BinOp(op=operator) if type(operator) in _ARITHMETIC and not in_message:
            if not any(isinstance(side, ast.JoinedStr) for side in (node.left, node.right)):
                yield ast.BinOp(node.left, _ARITHMETIC[type(operator)](), node.right)
        case ast.AugAssign(op=operator) if type(operator) in _ARITHMETIC:
            yield ast.AugAssign(node.target, _ARITHMETIC[type(operator)](), node.value)
        case ast.BoolOp():
            yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()) if not in_message:
            yield ast.Constant(node.value + 1)
            if node.value not in (0, 1, -1):
                yield ast.Constant(node.value - 1 if isinstance(node.value, int) else node.value / 2)
        case ast.Constant(value=str() | bytes()) if not in_message:
            yield ast.Constant(("x" if isinstance(node.value, str) else b"x") + node.value)
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.If() | ast.While():
            for value in (True, False):
                if value is False or isinstance(node, ast.If):
                    other = copy.copy(node)
                    other.test = ast.Constant(value)
                    yield other
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Delete():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Call() if not in_message:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _SWAP and (isinstance(node.func, ast.Attribute) or name in _BUILT_IN):
                other = copy.copy(node)
                if isinstance(node.func, ast.Attribute):
                    other.func = ast.Attribute(node.func.value, _SWAP[name], ast.Load())
                else:
                    other.func = ast.Name(_SWAP[name], ast.Load())
                    if _SWAP[name] == "list":
                        other.keywords = []
                yield other
            for place, keyword in enumerate(node.keywords):
                if keyword.arg and not isinstance(keyword.value, ast.Constant):  # a constant is changed itself
                    other = copy.copy(node)
                    other.keywords = node.keywords[:place] + node.keywords[place + 1 :]
                    yield other
        case ast.ExceptHandler(body=[*_]) if not isinstance(node.body[0], ast.Raise):
            yield ast.ExceptHandler(node.type, node.name, [ast.Raise()])


def _augmented(node: ast.AST) -> Iterator[ast.AST]:
    yield from _alternatives(node, False)
    if isinstance(node, ast.AugAssign):
        yield ast.Pass()


_SKIPPED_CALLS = re.compile(r"(Error|Warning|_log|warn|TypeVar|cast|getLogger|DamagedTar|Field|describe)$")


def _is_two_valued(test: ast.expr) -> bool:
    """Whether its only mutant is its negation."""
    if isinstance(test, ast.UnaryOp):
        return isinstance(test.op, ast.Not)
    equal = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    return isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], equal)


def mutants(path: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines.

    Left alone: annotations, docstrings, what is in a message (an f-string, or an argument of an error), imports, and
    ``assert``, which only states what holds.
    """
    text = (REPOSITORY / path).read_text()
    tree, source_lines = ast.parse(text), text.splitlines()
    found: list[Mutant] = []
    seen: dict[tuple[str, str], int] = {}
    seen_tests: set[int] = set()

    def visit(node: ast.AST, route: tuple, scope: str, name: str, statement: ast.stmt | None, message: bool) -> None:
        if isinstance(node, ast.stmt):
            statement = node
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr | ast.Global | ast.Nonlocal):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.While) and isinstance(node.test, ast.Constant):
            seen_tests.add(id(node.test))
            seen_tests.add(id(node))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dataclass":
            return
        if isinstance(node, ast.If | ast.IfExp) and _is_two_valued(node.test):
            seen_tests.add(id(node.test))  # both its values are tried as mutants of the statement
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            message = message or bool(_SKIPPED_CALLS.search(called))
        message = message or isinstance(node, ast.Raise)
        if statement is not None:
            body = getattr(statement, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else statement.end_lineno
            options = (
                []
                if id(node) in seen_tests
                else list(_augmented(node) if isinstance(node, ast.AugAssign) else _alternatives(node, message))
            )
            for place, option in enumerate(options):
                old, new = _short(node), _short(option)
                change = f"{old} → {new}" if not isinstance(option, ast.Pass) else f"without {old}"
                count = seen[scope, change] = seen.get((scope, change), 0) + 1
                if count > 1:
                    change += f" #{count}"
                source = source_lines[getattr(node, "lineno", statement.lineno) - 1].strip()
                lines = statement.lineno, max(last, statement.lineno)
                found.append(Mutant(path, scope, change, source, lines, _replacement(route, place, message)))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "ctx", "op", "ops", "type_params", "format_spec"):
                continue
            inner_scope, inner_name = scope, name
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if field == "body":
                    inner_name = f"{name}.{node.name}" if name else node.name
                    if not isinstance(node, ast.ClassDef) and not scope:
                        inner_scope = inner_name
                elif not isinstance(node, ast.ClassDef) and scope == "":
                    inner_scope = ""
            children = value if isinstance(value, list) else [value]
            for place, child in enumerate(children):
                if isinstance(child, ast.AST):
                    at = (field, place if isinstance(value, list) else None)
                    visit(child, (*route, at), inner_scope, inner_name, statement, message)

    visit(tree, (), "", "", None, False)
    return found


def _replacement(route: tuple, place: int, message: bool) -> Callable[[ast.Module], None]:
    def apply(tree: ast.Module) -> None:
        node: ast.AST = tree
        for field, index in route[:-1]:
            node = getattr(node, field) if index is None else getattr(node, field)[index]
        field, index = route[-1]
        old = getattr(node, field) if index is None else getattr(node, field)[index]
        new = list(_augmented(old) if isinstance(old, ast.AugAssign) else _alternatives(old, message))[place]
        ast.copy_location(new, old)
        if index is None:
            setattr(node, field, new)
        else:
            getattr(node, field)[index] = new
        ast.fix_missing_locations(tree)

    return apply


def _short(node: ast.AST) -> str:
    if isinstance(node, ast.If | ast.While):
        return f"{type(node).__name__.lower()} {ast.unparse(node.test)}"
    if isinstance(node, ast.ExceptHandler):
        return f"except {ast.unparse(node.type) if node.type else ''}: {ast.unparse(node.body[0])}"
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())


def compiled(mutant: Mutant) -> types.CodeType:
    file = REPOSITORY / mutant.path
    tree = ast.parse(file.read_text())
    mutant.apply(tree)
    return compile(tree, str(file), "exec", dont_inherit=True)


def _functions(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _functions(constant)


def swap(mutant: Mutant, living: Iterable[types.FunctionType]) -> None:
    """Give the living functions of the module the mutant's code. Raises ValueError where a closure does not fit."""
    new = {(code.co_qualname, code.co_firstlineno): code for code in _functions(compiled(mutant))}
    swapped = 0
    for function in living:
        code = new.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
        if code is not None and code != function.__code__:
            function.__code__ = code
            swapped += 1
    if not swapped:
        raise ValueError("no living function to swap")
