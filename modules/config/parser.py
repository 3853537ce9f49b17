"""Command lines: the parser of all programs, types of flags, and the flags that both programs have."""
import argparse
import difflib
import shlex
from typing import NoReturn

from modules.data.histogram import HISTOGRAM_TARGETS
from utils import BadInput

SWITCH = argparse.BooleanOptionalAction  # --flag and --no-flag, so that the command line can undo a recipe
_NOT_GIVEN = object()


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser that also reads flags from ``@FILE`` (shell-like lines, # starts a comment).

    It reports errors as BadInput, one sentence without the usage.
    """

    def __init__(self, **kwargs):
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def parse_given(self, argv: list[str] | None) -> dict:
        """The flags that ``argv`` gives, without defaults."""
        flags = (action.dest for action in self._actions if action.dest != "help")
        namespace = self.parse_args(argv, argparse.Namespace(**dict.fromkeys(flags, _NOT_GIVEN)))
        return {flag: value for flag, value in vars(namespace).items() if value is not _NOT_GIVEN}

    def defaults(self) -> dict:
        return {action.dest: action.default for action in self._actions if action.dest != "help"}

    def check_value(self, flag: str, value: object) -> None:
        """ValueError if ``value``, which comes from a file, is none that the command line could give ``flag``."""
        action = next(action for action in self._actions if action.dest == flag)
        if value is None and action.default is None:
            return
        values = value if action.nargs == "*" else [value]
        if not isinstance(values, list):
            raise ValueError(f"the saved value of {flag} is not a list")
        for one in values:
            if isinstance(action.default, bool):
                fits = isinstance(one, bool)
            elif isinstance(action.type, NumberType):
                fits = type(one) in (int, action.type.kind) and action.type.contains(one)
            else:
                fits = isinstance(one, str) and (action.choices is None or one in action.choices)
            if not fits:
                raise ValueError(f"the saved value of {flag}, {str(one)[:40]!r}, is invalid")

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if flags := [word.partition("=")[0] for word in unknown if word.startswith("--")]:
            self.error(f"there is no flag {' and no flag '.join(map(self._with_suggestion, flags))}")
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace

    def _with_suggestion(self, flag: str) -> str:
        """An unknown flag and the known one with the most similar name, if any."""
        known = {name.strip("-").lower(): name for name in self._option_string_actions}
        similar = difflib.get_close_matches(flag.strip("-").lower(), known, 1)
        return f"{flag} (did you mean {known[similar[0]]}?)" if similar else flag

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)

    def parse_known_args(self, *args, **kwargs):
        try:
            return super().parse_known_args(*args, **kwargs)
        except (ValueError, RecursionError) as error:  # an unclosed quotation, not text, or a file that names itself
            reason = "it includes itself" if isinstance(error, RecursionError) else error
            self.error(f"the flags cannot be read from the @file ({reason})")

    def error(self, message: str) -> NoReturn:
        if message.startswith("[Errno"):
            message = f"the @file cannot be read ({message.partition('] ')[2]})"
        raise BadInput(f"{message}; see --help")


class ChoiceOrOff(argparse.Action):
    """A flag with a choice, ``const`` where it is given without a value; its other name, --no-FLAG, chooses "off"."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs):
        super().__init__(option_strings, dest, nargs="?", **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        is_off = option_string.startswith("--no-")
        if is_off and values != self.const:
            parser.error(f"{option_string} takes no value")
        setattr(namespace, self.dest, "off" if is_off else values)


class NumberType:
    """An argparse type: an int or float within least..most (``above``: least itself is excluded)."""

    def __init__(self, kind: type, least: float, most: float = float("inf"), above: bool = False):
        self.kind, self.least, self.most, self.above = kind, least, most, above

    def contains(self, value: float) -> bool:
        is_above = value > self.least if self.above else value >= self.least
        return is_above and value <= self.most and abs(value) != float("inf")

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            word = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {word}") from None
        if not self.contains(value):
            bounds = f"{'above' if self.above else 'at least'} {self.least}"
            bounds += "" if self.most == float("inf") else f", at most {self.most}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {bounds}")
        return value


number = NumberType  # as a type in add_argument


def folder_name(text: str) -> str:
    """An argparse type: a folder's name, which an unset shell variable leaves empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return text


def add_latent_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--val_latent", "--latent", choices=["prior", "mean"], default="prior",
                       help="z of each generated frame: drawn from the prior N(0, I), or its mean 0")


def add_histogram_flag(group: argparse._ArgumentGroup, default: str | None) -> None:
    group.add_argument("--match_histogram", "--no-match_histogram", action=ChoiceOrOff, const="previous",
                       default=default, choices=HISTOGRAM_TARGETS,
                       help="match the histogram of each fed-back prediction to that of the frame fed in before it "
                            "(previous; also without a value) or of the first frame; Tester.py: as in training unless "
                            "given")


def add_machine_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=["cuda", "cpu"], help="None: cuda where available, else cpu")
    group.add_argument("--compile", choices=["auto", "on", "off"], default="auto",
                       help="compile the steps with torch.compile; auto: on a GPU, for runs long enough to gain more "
                            "than the minutes it takes")
    group.add_argument("--threads", type=number(int, 1, 4096),
                       help="threads that compute; None: on a CPU one or all, whichever a short timing shows to be "
                            "faster; Tester.py: as in training, one where all are slow")
    group.add_argument("--num_workers", type=number(int, 0, 1024), default=4,
                       help="threads that decode images; 0: one")
    group.add_argument("--cache", action=SWITCH, default=True,
                       help="keep the decoded frames on disk, so that only the first start decodes them")
    group.add_argument("--cache_dir", type=folder_name,
                       help="where they are kept; None: in .frame_cache in the dataset or, where that is read-only, in "
                            "the user's cache folder")


def add_precision_flag(group: argparse._ArgumentGroup, default: str | None) -> None:
    group.add_argument("--precision", choices=["auto", "fp32", "bf16"], default=default,
                       help="arithmetic of the network; auto: bf16 (autocast) where the processor supports it and, on "
                            "a CPU, a short timing shows that it is faster, else fp32; Tester.py: as in training "
                            "unless given")
