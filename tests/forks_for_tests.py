"""Calling something in a forked process, which must end."""

from __future__ import annotations

import os
import signal
import traceback
import warnings

import pytest

SECONDS = 30


def in_fork(function):
    """Call `function` in a fork of this process; fail where it raises, or never returns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process.*is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)  # ends a process that waits for ever
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status == signal.SIGALRM:
        pytest.fail("the forked process waits for ever")
    assert status == 0
