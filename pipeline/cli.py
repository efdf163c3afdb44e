"""The command line: it runs a command and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import sys

try:
    import os
    import traceback
    import warnings
    from collections.abc import Sequence
    from pathlib import Path

    from cyclopts import exceptions as wrong

    import pipeline
    from pipeline import output
    from pipeline.commands import app
    from pipeline.core import errors
    from pipeline.core.errors import InputError, JobInterruptedError, PixsimError, listed
except KeyboardInterrupt:  # half a second, in which Ctrl-C is no error to be traced either
    sys.stderr.write("pixsim: interrupted before anything was begun\n")
    raise SystemExit(3) from None

_SEVERAL = ("--set", "--classes", "--evaluate")  # take all words that follow them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    pipeline.is_command = arguments is None
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # what is wrong with an image is its status; Pillow's own remarks would stand between the lines
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component")
    words = [word for word in words if word != "--debug"]
    try:
        with pipeline.stop_on_signals():
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
    except JobInterruptedError as error:
        return _stopped(str(error), debug)
    except errors.BadSamplesError as error:
        output.print_bad_samples(error)
        return _fail(error.summary, error.exit_code, debug)
    except PixsimError as error:
        return _fail(str(error), error.exit_code, debug)
    except wrong.CycloptsError as error:
        return _fail(_wrong_arguments(error, words), InputError.exit_code, debug)
    except KeyboardInterrupt:
        return _stopped("interrupted", debug)
    except Exception as error:  # one line, whatever it is: the traceback is for --debug
        left = output.reader_left(error)
        return 1 if left else _fail(output.unforeseen(error), 1, debug)
    return 0


def _stopped(message: str, debug: bool) -> int:
    """Say so; a process whose threads would go on with their tasks ends here and now."""
    code = _fail(message, JobInterruptedError.exit_code, debug)
    if pipeline.running_here():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        print(errors.hide(traceback.format_exc()), file=sys.stderr, end="")
    print(f"pixsim: {errors.printable(message)}", file=sys.stderr)
    return code


def _wrong_arguments(error: wrong.CycloptsError, words: Sequence[str]) -> str:
    """Describe words of the command line that mean nothing, and say what does."""
    command = " ".join(error.command_chain or ())
    cure = f"'pixsim {command} --help' lists the options" if command else "see 'pixsim --help'"
    rest = error.unused_tokens or [""]
    if isinstance(error, wrong.UnknownCommandError) and _names_images(rest[0]):
        return f"'{rest[0]}' is no command; did you mean 'pixsim run {rest[0]}'?"
    if isinstance(error, wrong.UnusedCliTokensError):
        return f"{_left_over(rest[0], words[: words.index(rest[0])])}; {cure}"
    if isinstance(error, wrong.RepeatArgumentError):
        return f"{error.token.keyword} is given twice, expected once, with one value; {cure}"
    if isinstance(error, wrong.UnknownOptionError) and (others := _commands_with(error)):
        option = str(error.token.keyword or error.token.value).partition("=")[0]
        return f"'pixsim {command}' has no {option}, an option of {listed(others)}; {cure}"
    argument = error.argument
    if not isinstance(error, wrong.MissingArgumentError) or argument is None:
        text = " ".join(str(error).split())
        text += "." * text[-1].isalnum()
        return f"{text} {cure[0].upper()}{cure[1:]}"
    if argument.name.startswith("-"):
        given = error.keyword in words
        what = f"{error.keyword} needs a value" if given else f"{argument.name} is missing"
        return f"'pixsim {command}': {what}; {cure}"
    greedy = next((word for word in words if word in _SEVERAL), None)
    if greedy is not None:
        cure = f"give it before {greedy}, which takes all words that follow it"
    return f"'pixsim {command}' needs {argument.name}; {cure}"


def _names_images(word: str) -> bool:
    known = [entry.name for entry, _ in pipeline.list_datasets()]
    return Path(word).exists() or "://" in word or word in known


def _commands_with(error: wrong.UnknownOptionError) -> list[str]:
    """Return the commands that have an option that another one has not."""
    option = str(error.token.keyword or error.token.value).partition("=")[0]
    return [
        name
        for name in app
        if not name.startswith("-")
        and any(option in a.names for a in app[name].assemble_argument_collection())
    ]


def _left_over(word: str, before: Sequence[str]) -> str:
    """Describe the first word that no option or argument takes, after those `before` it."""
    option = next((w for w in reversed(before[1:]) if w.startswith("-")), None)
    values = before[len(before) - before[::-1].index(option) :] if option else before[1:]
    if option is None or not values:
        return f"'{word}' is one argument too many"
    form = f"{option} {values[0]}"
    if option == "--fit":
        form += f" --evaluate {word}"
    return f"{option} takes one value, got '{values[0]}' and '{word}'; expected such as '{form}'"


if __name__ == "__main__":
    sys.exit(main())
