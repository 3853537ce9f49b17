"""Stop requests: the first signal is noted, and the run stops between two steps."""
import signal
import threading

from utils import logger, read_rank


class StopSignals:
    """While it is active, the first Ctrl-C, SIGTERM or SIGHUP is noted in ``number``.

    After that the default handlers are back, so that a second one ends the process inside any operation. Under
    torchrun, which passes on a signal that the terminal has already sent to its processes, and kills them itself after
    a while, later signals are ignored instead.
    """
    NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self):
        self.number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self  # a notebook's thread: Python delivers signals to the main one
        for name in self.NAMES:
            number = getattr(signal, name, None)
            # Whoever started the process with nohup wants a signal ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        if self.number is not None:
            return
        self.number = number
        if read_rank().world_size == 1:
            for other in self._previous:
                signal.signal(other, signal.SIG_DFL)
        logger.warning("%s: finishing the step and saving; repeat to leave at once", signal.Signals(number).name)
