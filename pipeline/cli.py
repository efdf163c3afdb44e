"""The command line: it runs a command and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import sys

try:
    import os
    import traceback
    import warnings
    from collections.abc import Sequence

    import cyclopts

    import pipeline
    from pipeline import output
    from pipeline.commands import app
    from pipeline.core import errors
    from pipeline.core.errors import InputError, JobInterruptedError, PixsimError
except KeyboardInterrupt:  # half a second, in which Ctrl-C is no error to be traced either
    sys.stderr.write("pixsim: interrupted before anything was begun\n")
    raise SystemExit(3) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # what is wrong with an image is its status; Pillow's own remarks would stand between the lines
    warnings.filterwarnings("ignore", module=r"PIL\.")
    words = [word for word in words if word != "--debug"]
    try:
        with pipeline.stop_on_signals():
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
    except JobInterruptedError as error:
        return _stopped(str(error), debug)
    except PixsimError as error:
        if isinstance(error, errors.BadSamplesError):
            output.print_bad_samples(error)
        return _fail(str(error), error.exit_code, debug)
    except cyclopts.CycloptsError as error:
        text = " ".join(str(error).split())
        return _fail(f"{text} See 'pixsim --help'.", InputError.exit_code, debug)
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


if __name__ == "__main__":
    sys.exit(main())
