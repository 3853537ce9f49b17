"""A run that is asked to end ends well: signals are noted, and the run looks at the note between two steps."""
import contextlib
import math
import os
import signal
import sys
import threading
import time

from utils import is_main_process


class StopSignals:
    """Within it, the first Ctrl-C, SIGTERM or SIGHUP is only noted in ``number``; the second ends the process at once.

    The main thread may be inside one long tensor operation, and Python would run a signal's handler only after that.
    So a thread waits for the signals at the other end of a pipe.
    """
    NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
    ONE_REQUEST = 0.5  # seconds within which a launcher and a terminal may both pass on the same wish

    def __init__(self):
        self.number: int | None = None
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self  # a notebook's thread: Python leaves signals to the main one
        self._end, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {}
        for name in self.NAMES:
            number = getattr(signal, name, None)
            # Who started the process with nohup, say, wants a signal ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, lambda *_: None) or signal.SIG_DFL
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        if self._watcher is None:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        os.write(self._write, b"\0")
        self._watcher.join()
        os.close(self._write)
        os.close(self._end)

    @staticmethod
    def _acknowledge(number: int) -> None:
        if is_main_process():
            with contextlib.suppress(OSError, ValueError):  # a terminal that was closed
                print(f"\n{signal.Signals(number).name}: finishing the step and saving; once more to leave at once",
                      file=sys.stderr, flush=True)

    def _watch(self) -> None:
        since = math.inf
        while (number := os.read(self._end, 1)[0]) != 0:
            if number not in self._handlers:
                continue
            if self.number is None:
                self.number, since = number, time.monotonic()
                self._acknowledge(number)
            elif time.monotonic() - since > self.ONE_REQUEST:
                os._exit(128 + number)
