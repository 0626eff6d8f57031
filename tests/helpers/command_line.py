"""Run the commands of `unicorn-monai` in this process and keep what they say."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from cyclopts import App

from unicorn_monai.system.console import run_commands


@dataclass
class Result:
    """How a command ended: its exit status, what it said (``output``: both, in order), and what it raised."""

    exit_code: int
    output: str
    stdout: str
    stderr: str
    exception: BaseException | None


class _Kept(io.StringIO):
    """One of two outputs, which is kept in what holds both, too."""

    def __init__(self, both: io.StringIO) -> None:
        super().__init__()
        self.both = both

    def write(self, text: str) -> int:
        self.both.write(text)
        return super().write(text)


class CliRunner:
    """As the runners of other libraries: what a command raises is kept, with the exit status 1."""

    def invoke(self, app: App, words: Sequence[str]) -> Result:
        both = io.StringIO()
        out, err, raised = _Kept(both), _Kept(both), None
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = run_commands(app, words)
            except SystemExit as error:
                status, raised = int(error.code or 0), error
            except Exception as error:
                status, raised = 1, error
        return Result(status, both.getvalue(), out.getvalue(), err.getvalue(), raised)
