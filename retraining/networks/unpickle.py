"""Reads pickles from strangers: makes only what the caller allows, and runs none of their code."""

import io
import pickle
import pickletools
from collections.abc import Mapping
from typing import Any, ClassVar

from retraining.errors import RetrainingError

# Enough for dicts, lists and calls of protocol 2. Some others let the unpickler allocate whatever
# size the file claims (BINBYTES8, FRAME, BYTEARRAY8).
LISTED = """
PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINUNICODE
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD
"""
OPCODES = frozenset(LISTED.split())
MOST_PARTS = 10_000  # of a tuple, with the parts of its parts; those of weights have some dozens


class RestrictedUnpickler(pickle.Unpickler):
    """Refuses, with an `error`, all names and opcodes but those of its subclass.

    `names` is {(module, name): what stands for it}. A pickle may call a substitute with any
    arguments, and the `__setstate__` of anything that it holds.
    """

    names: ClassVar[Mapping[tuple[str, str], Any]]
    opcodes: ClassVar[frozenset[str]]
    max_bytes: ClassVar[int]
    error: ClassVar[type[RetrainingError]]

    @classmethod
    def read(cls, data: bytes, start: int = 0) -> tuple[Any, int]:
        """Returns the object pickled at byte `start` of `data`, and where its pickle ends."""
        stream = io.BytesIO(data[start : start + cls.max_bytes])
        try:
            cls._check_opcodes(stream)
            end = start + stream.tell()
            stream.seek(0)
            return cls(stream, encoding="latin-1").load(), end  # the encoding of Python 2's strings
        except cls.error:
            raise
        except Exception as error:  # a damaged pickle may raise anything (Python's documentation)
            problem = f"{type(error).__name__} in the pickle at byte {start}"
            raise cls.error(f"it is damaged or cut short ({problem})") from error

    @classmethod
    def _check_opcodes(cls, stream: io.BytesIO) -> None:
        """Walks the pickle without running it; leaves `stream` at its end."""
        tuples = _Tuples()
        for opcode, argument, position in pickletools.genops(stream):
            if opcode.name not in cls.opcodes:
                raise cls.error(f"it uses the pickle opcode {opcode.name}, which is refused")
            # The unpickler's memo is an array as long as the largest index; pickles count from 0.
            if opcode.name == "LONG_BINPUT" and (argument or 0) > (position or 0):
                raise cls.error("it numbers its pickled objects absurdly")
            if tuples.follow(opcode, argument) > MOST_PARTS:
                raise cls.error("it nests its tuples absurdly")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise self.error(f"it asks for {f'{module}.{name}'[:80]!r}, which is refused")
        substitute = self.names[module, name]
        # A new function each time: BUILD could write attributes into a lasting one.
        return (lambda *arguments: substitute(*arguments)) if callable(substitute) else substitute


class _Tuples:
    """Follows the stack of an unpickler; knows of each object only how many parts a hash visits.

    A tuple as the key of a dict is hashed. That visits a part as often as tuples refer to it: 2^60
    times in a few hundred bytes. And it recurses, without a limit, into tuples in tuples. Lists and
    dicts have no hash, so that each counts as one part.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marks: list[int] = []  # their places on the stack
        self._memo: dict[Any, int] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """Does what an opcode does to the stack; returns the number of parts of its topmost."""
        stack, before = self._stack, opcode.stack_before
        if opcode.name == "MARK":
            self._marks.append(len(stack))
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(self._memo) if opcode.name == "MEMOIZE" else argument
            self._memo[place] = stack[-1]
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        else:
            marked = pickletools.markobject in before
            start = self._marks.pop() if marked else len(stack)
            start -= before.index(pickletools.markobject) if marked else len(before)
            parts = stack[start:]
            del stack[start:]
            whole = opcode.name.startswith("TUPLE") or opcode.name in ("REDUCE", "BINPERSID")
            size = 1 + sum(parts) if whole else parts[0] if parts else 1  # BUILD returns its first
            stack += [size] * len(opcode.stack_after)
        return stack[-1] if stack else 0
