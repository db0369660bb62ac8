"""`atelier`, and scripts, as processes of their own without their imports: forked from one that has made them.

A command imports for up to six seconds and then works for a fraction of one; tests give hundreds. This file is also
what that process runs: it reads a line, forks a child for each program that stands there, and answers with their
pids, and then with their codes.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
PRELOADED: Final = (
    *("flows.lifecycle", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"),
    *(
        "mlflow.store.model_registry.sqlalchemy_store",
        "prefect.context",
        "torch",
        "safetensors.torch",
    ),
)
AT_IMPORT: Final = {"COLUMNS": "200", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
"""What a command sets, or is given, before it imports the tools that read it once."""


@contextmanager
def begun(arguments: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A process that ends with the block: one that waits for a test that has failed is waited for without end."""
    with subprocess.Popen(arguments, **options) as process:
        try:
            yield process
        finally:
            process.kill()


class Commands:
    """Runs commands one at a time; starts its process at the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def run(
        self,
        *words: str,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        began: Callable[[int], None] = lambda _: None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `atelier words...` in a folder, with just these variables (else the test's own).

        Its process is told to `began` meanwhile, as to who kills it.
        """
        env = os.environ if env is None else env
        (done,) = self._ended([["atelier", *words]], cwd, env, lambda pids: began(pids[0]))
        return done

    def script(
        self, script: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python file, with just these variables (else the test's own)."""
        env = os.environ if env is None else env
        (done,) = self._ended([[str(script), *arguments]], ROOT, env)
        return done

    def together(self, script: Path, *arguments: Sequence[str]) -> list[int]:
        """Run a Python file once for each of the `arguments`, all at a time; returns their exit codes."""
        ended = self._ended([[str(script), *one] for one in arguments], ROOT, os.environ)
        for one in ended:
            print(one.stdout, one.stderr)  # noqa: T201 - pytest shows it where a test fails
        return [one.returncode for one in ended]

    def _ended(
        self,
        programs: Sequence[Sequence[str]],
        cwd: Path,
        env: Mapping[str, str],
        began: Callable[[list[int]], None] = lambda _: None,
    ) -> list[subprocess.CompletedProcess[str]]:
        with self._one_at_a_time, tempfile.TemporaryDirectory() as folder:
            outputs = [
                (Path(folder) / f"{number}.out", Path(folder) / f"{number}.err")
                for number in range(len(programs))
            ]
            asked = [
                {
                    "words": program,
                    "cwd": str(cwd),
                    "environment": dict(env),
                    "outputs": [str(out), str(err)],
                }
                for program, (out, err) in zip(programs, outputs, strict=True)
            ]
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            if pids := process.stdout.readline():
                began(json.loads(pids))
            answer = process.stdout.readline()
            assert answer, f"the process that runs `{' '.join(programs[0])}` has ended"
            return [
                subprocess.CompletedProcess(list(program), code, out.read_text(), err.read_text())
                for program, code, (out, err) in zip(
                    programs, json.loads(answer), outputs, strict=True
                )
            ]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, **AT_IMPORT}, start_new_session=True,
            )  # fmt: skip
        return self._process


commands: Final = Commands()
"""The run's own; conftest closes it."""


class End:
    """A child's end: after its threads and all else that was left for its exit, without clearing a million objects.

    An interpreter takes a third of a second for these, and the system takes them back anyway.
    """

    def __init__(self) -> None:
        self._code = 0

    def __enter__(self) -> None:
        self._code = 1  # of an exception, which the interpreter shows

    def __exit__(self, kind: object, raised: BaseException | None, trace: object) -> None:
        if isinstance(raised, SystemExit) and isinstance(raised.code, int | None):
            self._code = raised.code or 0
        elif raised is None:
            self._code = 0

    def now(self) -> None:
        """Leave."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._code)


def serve() -> None:
    """Import what commands import; then fork for each line that comes in."""
    sys.path[0] = str(ROOT)  # in place of tests/, whose folders have the packages' names
    end = End()
    atexit.register(end.now)  # the first that is registered runs last
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        children = []
        for asked in json.loads(line):
            child = os.fork()
            if child == 0:
                with end:
                    _become(asked)
                return
            children.append(child)
        print(json.dumps(children), flush=True)  # noqa: T201
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)  # noqa: T201


def _become(asked: Mapping[str, Any]) -> None:
    """Be the program: its outputs, folder and variables; leaves as a fresh process would."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, path in enumerate(asked["outputs"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    sys.argv = list(asked["words"])
    if sys.argv[0] != "atelier":
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()  # it was made of the variables that stood at the import
    from flows.__main__ import main

    main()


if __name__ == "__main__":
    serve()
