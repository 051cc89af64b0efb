"""The stop button, held back while something must not be torn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # the stop button and Ctrl-C; `kill`, or a cluster's notice before it kills


class StopButton:
    """Raises ``KeyboardInterrupt`` at once, or at the end of the ``held()`` block that is running.

    Pressed again within the block it raises at once and :attr:`torn` is set: what the block was doing is half done.
    :attr:`ends_process` says that it was not the button but SIGTERM, after which nothing else is to be begun. Only the
    main thread hears signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.torn = self.ends_process = False
        self._pressed = False
        self._depth = 0  # of nested held() blocks
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopButton:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._press) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.ends_process |= number == signal.SIGTERM
        if self._depth and not self._pressed:
            self._pressed = True
            return
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that is finished before the button works."""
        self._depth += 1
        try:
            yield
        except BaseException:
            self.torn = True
            raise
        finally:
            self._depth -= 1
        if self._pressed and not self._depth:
            self._pressed = False
            raise KeyboardInterrupt
