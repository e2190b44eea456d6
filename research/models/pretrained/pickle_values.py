"""What does a pickle describe, read without Python's unpickler?

A pickle is a program for a stack machine that can call any function. This one knows the handful of instructions that
PyTorch's state dicts use and calls nothing: what a pickle wants called stays a `Call` with a name, which the caller
looks up in a table of its own.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

MAX_BYTES = 4 * 2**20  # a state dict of 2,000 arrays takes 0.3 MB
MAX_OPERATIONS = 500_000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSHED = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "SHORT_BINSTRING", "BINSTRING",
}  # fmt: skip
_NOTHING = {"PROTO", "FRAME"}
_MARK = object()


class Refused(ValueError):
    """The pickle holds something that no state dict needs."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A global that the pickle names."""

    name: str


class _Machine:
    def __init__(self, calls: Mapping[str, Callable], names: Callable[[str], bool], persistent: Callable) -> None:
        self.calls, self.names, self.persistent = calls, names, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def marked(self) -> list:
        """Pops everything above the last mark, and the mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise Refused("a mark is missing")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def run(self, operation: str, argument: Any) -> None:
        """Does what one opcode says, to the stack and the memo alone."""
        stack = self.stack
        if operation in _PUSHED:
            stack.append(argument)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation == "MARK":
            stack.append(_MARK)
        elif operation == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif operation in ("GLOBAL", "STACK_GLOBAL"):
            if operation == "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                argument = f"{module} {name}"
            self.name(argument.replace(" ", "."))
        elif operation == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        else:
            self.collect(operation)

    def name(self, name: str) -> None:
        if name not in self.calls and not self.names(name):
            raise Refused(f"it wants {name}")
        self.stack.append(Name(name))

    def collect(self, operation: str) -> None:
        """The instructions that make tuples, lists and dictionaries, and the calls."""
        stack = self.stack
        if operation in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3").index(operation)
            if len(stack) < count:
                raise Refused("its stack is empty")
            values = tuple(stack[len(stack) - count :])
            del stack[len(stack) - count :]
            stack.append(values)
        elif operation == "TUPLE":
            stack.append(tuple(self.marked()))
        elif operation == "EMPTY_LIST":
            stack.append([])
        elif operation == "EMPTY_DICT":
            stack.append({})
        elif operation in ("APPEND", "APPENDS"):
            values = [stack.pop()] if operation == "APPEND" else self.marked()
            _of_type(stack[-1], list).extend(values)
        elif operation in ("SETITEM", "SETITEMS"):
            values = [stack.pop() for _ in range(2)][::-1] if operation == "SETITEM" else self.marked()
            target = _of_type(stack[-1], dict)
            for key, value in zip(values[::2], values[1::2], strict=True):
                if not isinstance(key, (str, int)):
                    raise Refused(f"a dictionary has a key of type {type(key).__name__}")
                target[key] = value
        elif operation == "REDUCE":
            arguments, function = _of_type(stack.pop(), tuple), _of_type(stack.pop(), Name)
            if function.name not in self.calls:
                raise Refused(f"it wants to call {function.name}")
            stack.append(self.calls[function.name](*arguments))
        elif operation == "BUILD":
            stack.pop()  # attributes such as the state dict's _metadata
        else:
            raise Refused(f"it has the instruction {operation}")


def _of_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Refused(f"a {kind.__name__} was due where it has a {type(value).__name__}")
    return value


def read(
    data: Any, calls: Mapping[str, Callable], names: Callable[[str], bool], persistent: Callable[[Any], Any]
) -> Any:
    """The value that a pickle describes.

    Args:
      data: bytes, or a binary file that is left after the pickle.
      calls: what stands for the globals that the pickle may call.
      names: whether a further global may be named.
      persistent: what stands for a persistent id, PyTorch's storages.

    Raises:
      Refused: names the first thing that is not allowed.
      ValueError, IndexError, KeyError, TypeError: it is damaged.
    """
    machine = _Machine(calls, names, persistent)
    for count, (operation, argument, position) in enumerate(pickletools.genops(data)):
        if count > MAX_OPERATIONS or (position or 0) > MAX_BYTES:
            raise Refused("it is too long")
        if operation.name == "STOP":
            return machine.stack.pop()
        if operation.name not in _NOTHING:
            machine.run(operation.name, argument)
    raise Refused("it does not end")
