"""Ends a thread at a chosen point: what an exception that another thread raises in it can do."""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Self

_LOOKED_AT = {"RESUME", "JUMP_BACKWARD", "CALL", "CALL_FUNCTION_EX", "CALL_KW"}
"""Behind these instructions, and no others, the interpreter raises what is to be raised."""


class CutOff:
    """Raises SystemExit at one of the points of a thread's code where the interpreter would.

    It is for threads that start while it is entered, and begins to count when it is armed.
    """

    def __init__(self, point: int, files: tuple[str, ...]) -> None:
        """Choose the point.

        Args:
            point: Which one, counted from 1.
            files: Parts of the paths of the files whose code counts.
        """
        self.point = point
        self.files = files
        self.passed = 0
        self.armed = False
        self.place = ""
        """Where it was raised; empty as long as it was not."""
        self._last: dict[FrameType, int] = {}
        self._is_back = False

    def __enter__(self) -> Self:
        threading.settrace(self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        threading.settrace(None)  # type: ignore[arg-type]

    def _begin(self, frame: FrameType, event: str, arg: object) -> Any:
        if self.place:
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = any(file in frame.f_code.co_filename for file in self.files)
        return self._look

    def _look(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if self.place:
            return None
        if event == "return":
            self._last.pop(frame, None)
            self._is_back = True
        elif event == "opcode":
            last, self._last[frame] = self._last.get(frame), frame.f_lasti
            is_back, self._is_back = self._is_back, False
            if self.armed and last is not None and _is_looked_at(frame.f_code, last, is_back):
                self.passed += 1
                if self.passed == self.point:
                    self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                    self._last.clear()
                    self.act()
        return self._look

    def act(self) -> None:
        """Do what happens at the point."""
        raise SystemExit


class Interruption(CutOff):
    """Calls something at the point: a signal handler, or what the garbage collector ends there."""

    def __init__(self, point: int, files: tuple[str, ...], call: Callable[[], object]) -> None:
        """Choose the point, as above.

        Args:
            point: Which one, counted from 1.
            files: Parts of the paths of the files whose code counts.
            call: Is called once, in the thread.
        """
        super().__init__(point, files)
        self._call = call

    def act(self) -> None:
        """Call it."""
        self._call()


def _is_looked_at(code: CodeType, last: int, is_back: bool) -> bool:
    name = dis.opname[code.co_code[last]]
    # from a function in Python it comes back without a look
    return name in _LOOKED_AT and not (is_back and name.startswith("CALL"))


def is_traced() -> bool:
    """Whether something else, such as a debugger, traces this process already."""
    return sys.gettrace() is not None
