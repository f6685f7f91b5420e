"""Python programs that start in a tenth of a second, forked from a process that has imported torch and this package.

A real start of the command line spends five seconds on imports. The server below imports once for each pytest process
and forks a child for each program. The child gets its own arguments, environment, folder and pipes, and runs the
program like `python -m`, `python FILE` or `python -c`.

Three kinds of program need a real start: programs that measure imports, programs that are told their rank (Lightning
reads the rank while it is imported), and programs that a test finds by their command line. A few other tests also start
for real, so that the console's own start stays tested.
"""

from __future__ import annotations

import array
import atexit
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

RANKS = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK")
"""Variables that Lightning reads while it is imported."""

_SIZE = 2**20  # the largest request: an environment and the arguments


class Forked:
    """A running program. Methods have the names of `subprocess.Popen`; only the ones that tests use exist."""

    def __init__(self, args: Sequence[str], status: socket.socket, stdout: int, stderr: int) -> None:
        self.args, self._status = list(args), status
        self.stdout, self.stderr = open(stdout, encoding="utf-8"), open(stderr, encoding="utf-8")  # noqa: SIM115
        self.returncode: int | None = None
        self._replies = status.makefile("r")
        self.pid = int(self._replies.readline())

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal that ended the program; None while the program runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._look(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if selector.select(timeout):
                    self.returncode = int(self._replies.readline() or -signal.SIGKILL)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return the unread output of both pipes, once the program and every holder of its pipes have ended."""
        limit = None if timeout is None else time.monotonic() + timeout
        said = ["", ""]

        def read(index: int, pipe: io.TextIOBase) -> None:
            said[index] = "" if pipe.closed else pipe.read()

        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate(self._pipes)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if limit is None else max(0.0, limit - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if limit is None else max(0.0, limit - time.monotonic()))
        for pipe in (*self._pipes, self._replies, self._status):
            pipe.close()
        return said[0], said[1]

    @property
    def _pipes(self) -> tuple[io.TextIOBase, io.TextIOBase]:
        return self.stdout, self.stderr


class _Server:
    """The forking process, and the socket on which it receives requests."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _SIZE)
        command = [sys.executable, "-W", "ignore", "-m", "tests.forks", str(theirs.fileno())]
        root = str(Path(__file__).parent.parent)
        self.process = subprocess.Popen(
            command, cwd=root, env={**environment, "PYTHONPATH": root}, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        atexit.register(self.close)

    def close(self) -> None:
        self.control.close()  # the server ends when its socket closes
        self.process.wait()

    def start(self, args: Sequence[str], cwd: Path, env: Mapping[str, str], new_session: bool) -> Forked:
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()
        status, child_status = socket.socketpair()
        request = {"args": list(args), "cwd": str(cwd), "env": dict(env), "new_session": new_session}
        descriptors = array.array("i", [child_out, child_err, child_status.fileno()])
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        self.control.sendmsg([json.dumps(request).encode()], passed)
        child_status.close()
        for descriptor in (child_out, child_err):
            os.close(descriptor)
        return Forked([sys.executable, *args], status, out, err)


_servers: dict[int, _Server] = {}


def start_python(
    *args: str, cwd: Path, env: Mapping[str, str], new_session: bool = False
) -> Forked | subprocess.Popen[str]:
    """Run `python ARGS` in `cwd` with exactly `env`; if `env` names a rank, by a real start."""
    if any(name in env for name in RANKS) or args[:2] == ("-m", "torch.distributed.run"):
        return start_for_real(*args, cwd=cwd, env=env, new_session=new_session)
    if os.getpid() not in _servers:
        _servers[os.getpid()] = _Server(env)
    return _servers[os.getpid()].start(args, cwd, env, new_session)


def start_for_real(*args: str, cwd: Path, env: Mapping[str, str], new_session: bool = False) -> subprocess.Popen[str]:
    """Start a new Python process, which imports everything itself."""
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=cwd,
        env=dict(env),
        start_new_session=new_session,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- in the server ---------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Import, then fork a child for each request until the socket is closed."""
    import wandb  # noqa: F401
    from sklearn import datasets, ensemble, linear_model  # noqa: F401

    assert threading.active_count() == 1  # a fork copies only the calling thread
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers below
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in pytest's terminal is for pytest
    while True:
        text, ancillary, _, _ = control.recvmsg(_SIZE, socket.CMSG_SPACE(3 * array.array("i").itemsize))
        if not text:
            return
        descriptors = array.array("i", ancillary[0][2])
        if os.fork() == 0:
            control.close()
            _watch(json.loads(text), *descriptors)
        for one in descriptors:
            os.close(one)


def _watch(request: Mapping[str, object], out: int, err: int, status: int) -> NoReturn:
    """Fork the program, wait for it, and report its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _become(request, out, err)
    os.close(out), os.close(err)
    os.write(status, f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.write(status, f"{code}\n".encode())
    finally:  # the test may have ended already
        os._exit(0)


def _become(request: Mapping[str, object], out: int, err: int) -> NoReturn:
    """Run the program of the request in this process, and exit with its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new_session"]:
        os.setsid()
    _leave_to_server()
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    code = 1
    try:
        code = _exit_code(list(request["args"]))  # type: ignore[call-overload]
        threading._shutdown()  # type: ignore[attr-defined]  # the interpreter's order at exit: threads, then atexit
        atexit._run_exitfuncs()
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def _leave_to_server() -> None:
    """Leave cleaning up after the imports (wandb's temporary folders) to the server; children must not do so."""
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # so that the child registers its own


def _exit_code(args: list[str]) -> int:
    try:
        _run(args)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _run(args: list[str]) -> None:
    kind, *rest = args
    if kind == "-m":
        sys.argv, sys.path[0] = rest, str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    else:
        sys.argv, sys.path[0] = args, str(Path(kind).parent)
        sys.modules["__main__"] = module = ModuleType("__main__")
        module.__dict__.update(__file__=kind, __builtins__=__builtins__)
        exec(compile(Path(kind).read_text(), kind, "exec"), module.__dict__)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
