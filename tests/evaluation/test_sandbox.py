"""Programs that try to get out of the sandbox, under each combination of layers that works here.

Each attack is a program that passes if all that it tried was stopped; what it could have changed
is looked at from outside as well.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llamita.errors import UserError
from llamita.evaluation import sandbox, sandbox_filter, sandbox_process
from llamita.evaluation.sandbox import Outcome, Protection, run_python

linux = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"),
    reason="the sandbox is Linux's",
)
pytestmark = linux
intel = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")

SAFE = [plan for plan in sandbox._PLANS if plan.is_safe]
NAMES = ["all, user", "all, root", "mounts, user", "mounts, root", "landlock"]

STOPPED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def stopped(action, *arguments, **named):
    try:
        found = action(*arguments, **named)
    except (OSError, RuntimeError):
        return
    raise AssertionError(f"{action} {arguments} gave {found}")

def call(number, *arguments):
    ctypes.set_errno(0)
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    found = libc.syscall(number, *passed)
    return found, ctypes.get_errno()

def denied(number, *arguments):
    found, error = call(number, *arguments)
    assert found == -1 and error in (1, 38), (number, arguments, found, os.strerror(error))
"""


_PROBE = """
import ctypes, sys
libc = ctypes.CDLL(None)
user = sys.argv[1] == "True"
print(libc.syscall(444, None, 0, 1) > 0,
      libc.unshare(0x4C020000 | 0x10000000 * user) == 0
      and libc.mount(None, b"/", None, 1 << 18 | 1 << 14, None) == 0)
"""
withstands = functools.cache(sandbox._withstands)


@functools.cache
def granted(user: bool) -> tuple[bool, bool]:
    """Whether the kernel has Landlock, and gives a process namespaces and mounts of its own: asked
    without the sandbox's code, so that what that breaks is not passed over as not granted."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(user)], capture_output=True, text=True, check=True
    )
    landlock, mounts = done.stdout.split()
    return landlock == "True", mounts == "True"


@pytest.fixture(params=SAFE, ids=NAMES)
def plan(request: pytest.FixtureRequest) -> Protection:
    landlock, mounts = granted(request.param.user)
    if (request.param.landlock and not landlock) or (request.param.mounts and not mounts):
        pytest.skip("this machine does not grant these layers")
    assert withstands(request.param)
    found: Protection = request.param
    return found


def attack(program: str, plan: Protection | None = None, **settings: object) -> None:
    text = STOPPED + textwrap.dedent(program)
    outcome = run_python(text, protection=plan, **settings)  # type: ignore[arg-type]
    assert outcome == Outcome("passed"), outcome.detail


@contextlib.contextmanager
def canary() -> Iterator[Path]:
    """A home with an `.ssh/id`, outside of any directory that belongs to a test."""
    with tempfile.TemporaryDirectory() as home:
        secret = Path(home, ".ssh", "id_ed25519")
        secret.parent.mkdir(mode=0o700)
        secret.write_text("a key")
        secret.chmod(0o600)
        os.utime(secret, (1e9, 1e9))
        before = secret.stat()
        yield secret
        assert sorted(Path(home).rglob("*")) == [secret.parent, secret]
        assert secret.read_text() == "a key"
        after = secret.stat()
        for name in ("st_mode", "st_uid", "st_mtime", "st_size", "st_nlink"):
            assert getattr(after, name) == getattr(before, name), name


@pytest.mark.parametrize(
    ("program", "why", "detail"),
    [
        ("assert 1 + 1 == 2", "passed", ""),
        ("x = 1\nassert x == 2", "failed", "AssertionError (line 2: assert x == 2)"),
        ("def f(:", "failed", "SyntaxError"),
        ("\ud800", "failed", "UnicodeEncodeError"),
        ("\0", "failed", "SyntaxError"),
        ("import sys; sys.exit(0)", "failed", "SystemExit: the program ended before"),
        ("raise SystemExit", "failed", "the program ended before"),
        ("import os; os._exit(0)", "failed", "status 0"),
        ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
        ("import atexit, os; atexit.register(print)\nquit()", "failed", "NameError"),
        ("import os; os.kill(os.getpid(), 9)", "failed", "signal 9"),
        ("import os; os.abort()", "failed", "signal 6"),
        ("import ctypes; ctypes.string_at(0)", "failed", "signal 11"),
        ("import os; os.closerange(0, 64)", "failed", "ended"),
        ("class E(Exception):\n  def __str__(self): return self.x\nraise E", "failed", "ended"),
        ("def f(): f()\nf()", "failed", "RecursionError"),
        ("raise ValueError('\\x1b[2J\\x07\\n\\u202e')", "failed", "ValueError: �[2J��� (line 1"),
        ("import signal, time\nsignal.alarm(1)\ntime.sleep(5)", "failed", "signal 14"),
        ("x = 'a' * 10**10", "memory", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "memory", "MemoryError"),
        ("try:\n  x = 'a' * 10**10\nexcept MemoryError: pass", "passed", ""),
        ("print('x' * 10**6)\nimport sys\nsys.stderr.write('y' * 10**6)", "passed", ""),
        ("import sys; assert sys.stdin.read() == ''", "passed", ""),
        ("assert __name__ == 'program'", "passed", ""),
        ("x = 0\nif __name__ == '__main__': x = 1\nassert not x", "passed", ""),
    ],
)
def test_outcome(program: str, why: str, detail: str) -> None:
    outcome = run_python(program, memory_bytes=2**28)
    assert outcome.why == why
    assert detail in outcome.detail
    assert outcome.passed == (why == "passed") == (outcome.detail == "")


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(100)",
        "while True: print('x' * 10**6)",
        "import signal\nfor n in range(1, 32):\n  if n not in (9, 19): signal.signal(n, 1)\n"
        "while True:\n  try: 1 / 0\n  except BaseException: pass",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import os\nreads, writes = os.pipe()\nos.read(reads, 1)",
        "x = 10 ** 10 ** 10",  # in C, deaf to Python's own signals
        "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
    ],
)
def test_time_is_limited(program: str) -> None:
    began = time.monotonic()
    assert run_python(program, seconds=0.3).why == "timeout"
    assert time.monotonic() - began < 20  # most of it is the machine's


def test_limits() -> None:
    """Files, their sizes, what they hold together, descriptors, and no way to loosen any."""
    attack(
        """
        import errno, mmap, resource
        handles = []
        try:
            while True: handles.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE and len(handles) < 64
        for handle in handles: os.close(handle)
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
            try:
                resource.setrlimit(kind, (2 ** 40, 2 ** 40))
            except (ValueError, OSError): pass
            else: raise AssertionError("a limit was raised")
        stopped(mmap.mmap, -1, 2 ** 30)
        stopped(os.eventfd, 0)
        stopped(os.memfd_create, "x")
        """,
        memory_bytes=2**28,
    )
    if sandbox.protect().mounts:
        attack(
            """
            import errno, signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            written = 0
            try:
                for n in range(10 ** 6):
                    with open(f"file{n}", "wb") as file:
                        written += file.write(b"x" * 2 ** 20)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
            assert written <= 2 ** 24
            for n in range(17): os.path.exists(f"file{n}") and os.remove(f"file{n}")
            try:
                for n in range(10 ** 6): os.mkdir(f"d{n}")
            except OSError as error:
                assert error.errno == errno.ENOSPC and n < 1024
            """
        )


def test_files(plan: Protection) -> None:
    with canary() as secret:
        attack(
            f"""
            import pathlib, shutil, sysconfig
            secret, pid, home = {str(secret)!r}, {os.getpid()}, {str(secret.parent.parent)!r}
            for path in (secret, "/etc/passwd", "/etc/shadow", f"/proc/{{pid}}/mem",
                         f"/proc/{{pid}}/environ", "/proc/self/mem", "/proc/1/cmdline", "/dev/mem",
                         f"/proc/self/root{{secret}}", f"/proc/{{pid}}/root{{secret}}", "/dev/vda",
                         "/proc/self/cmdline", "/sys/kernel/uevent_helper", "/dev/tty",
                         "../" * 20 + secret[1:], {__file__!r}, {sandbox.__file__!r}):
                stopped(open, path, "rb")
            readable = set({sandbox_process._readable()!r})
            for path in (home, "/proc", "/home", "/sys", "/var", "/run", "/tmp"):
                try:
                    for name in os.listdir(path):  # but for what leads to a Python below it
                        inside = os.path.join(path, name) + "/"
                        assert any(f"{{each}}/".startswith(inside) for each in readable), inside
                except OSError: pass
            for folder, folders, files in os.walk("/"):  # where there is a root to be seen
                for path in (os.path.join(folder, file) for file in files):
                    assert path in readable, path
                folders[:] = [f for f in folders if os.path.join(folder, f) not in readable]
            places = [home, "/dev/shm", "/var/tmp", "/root", "/etc", "/usr/lib", "/dev", "/sys",
                      os.path.dirname(os.__file__), sysconfig.get_path("purelib"), sys.prefix]
            for path in places:
                for flags in (os.O_CREAT | os.O_WRONLY, os.O_TMPFILE | os.O_RDWR):
                    handle = None
                    try:
                        handle = os.open(f"{{path}}/new" if flags & os.O_CREAT else path, flags)
                    except OSError: pass
                    assert handle is None, path
                stopped(os.mkdir, f"{{path}}/new")
                stopped(os.rmdir, path)
                stopped(os.symlink, "/", f"{{path}}/link")
                stopped(os.mkfifo, f"{{path}}/fifo")
                stopped(os.mknod, f"{{path}}/node")
            for path in (secret, os.__file__, "/dev/null", "/usr/lib/os-release"):
                for action in (os.remove, os.readlink, os.rmdir):
                    stopped(action, path)
                stopped(os.chmod, path, 0o777)
                stopped(os.chown, path, 0, 0)
                stopped(os.utime, path)
                stopped(os.truncate, path, 0)
                stopped(os.rename, path, "here")
                stopped(os.link, path, "here")
                stopped(os.setxattr, path, "user.x", b"x")
                stopped(os.open, path, os.O_RDWR) if path != "/dev/null" else None
                stopped(os.execv, path, [path])
            # What is open to be read is no way to change it either.
            handle = os.open(os.__file__, os.O_RDONLY)
            stopped(os.fchmod, handle, 0o777)
            stopped(os.fchown, handle, 0, 0)
            stopped(os.ftruncate, handle, 0)
            stopped(os.utime, handle)
            root = os.open("/", os.O_PATH)
            stopped(os.open, secret[1:], os.O_RDONLY, dir_fd=root)
            stopped(os.unlink, secret[1:], dir_fd=root)
            stopped(os.chroot, "/")
            shutil.rmtree(home, ignore_errors=True)
            shutil.rmtree(os.path.dirname(os.__file__) + "/json", ignore_errors=True)
            import json
            """,
            plan,
        )


def test_packages_below_the_temporary_directory(
    plan: Protection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an environment that was made there: they are read, and cannot be written to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        packages = Path(folder, "packages")
        packages.mkdir()
        Path(packages, "brought.py").write_text("WORD = 'here'\n")
        known = sandbox_process._readable()
        monkeypatch.setattr(sandbox_process, "_readable", lambda: [*known, str(packages)])
        assert sandbox._withstands(plan)
        attack(
            f"""
            assert open({str(packages / "brought.py")!r}).read() == "WORD = 'here'\\n"
            for path in ({str(packages)!r}, {folder!r}, "/tmp"):
                stopped(os.mkdir, path + "/new")
                stopped(open, path + "/new", "w")
            """,
            plan,
        )
        assert [each.name for each in packages.iterdir()] == ["brought.py"]


def test_it_sees_an_empty_directory_and_no_environment(
    monkeypatch: pytest.MonkeyPatch, plan: Protection
) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    inner = "open('note', 'w').write('x'); assert open('note').read() == 'x'; os.remove('note')"
    attack(
        f"""
        assert all(name.endswith("_NUM_THREADS") for name in os.environ), os.environ
        assert libc.getenv(b"A_TOKEN") == libc.getenv(b"LD_LIBRARY_PATH") == 0
        assert os.listdir() == [], os.listdir()
        {inner if plan.mounts else "stopped(open, 'note', 'w')"}
        open(os.devnull, "w").write("x")
        assert not [name for name in sys.modules if name.startswith("llamita")]
        import stat
        for handle in range(64):  # what it holds open leads nowhere
            try: mode = os.fstat(handle).st_mode
            except OSError: continue
            assert stat.S_ISFIFO(mode) or stat.S_ISCHR(mode), handle
            assert handle < 6
        frame, marker = sys._getframe(1), "a" * 3 + "b" * 3
        while frame:
            assert marker not in repr(frame.f_locals)
            frame = frame.f_back
        # aaabbb
        """,
        plan,
    )


def test_network(plan: Protection, tmp_path: Path) -> None:
    """Servers that wait outside are not reached: TCP, UDP, a path, an abstract name."""
    with contextlib.ExitStack() as stack:
        servers = []
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, os.path.relpath(tmp_path / "socket")),
            (socket.AF_UNIX, socket.SOCK_DGRAM, f"\0llamita-{os.getpid()}"),
        ):
            server = stack.enter_context(socket.socket(family, kind))
            server.bind(address)
            server.setblocking(False)
            if kind == socket.SOCK_STREAM:
                server.listen()
            servers.append(server)
        port = servers[0].getsockname()[1]
        attack(
            f"""
            import asyncio, socket, struct, urllib.request
            for family in range(46):
                for kind in (1, 2, 3, 5):
                    stopped(socket.socket, family, kind)
            stopped(socket.create_connection, ("127.0.0.1", {port}), 1)
            stopped(urllib.request.urlopen, "http://127.0.0.1:{port}", timeout=1)
            stopped(socket.getaddrinfo, "example.org", 80)
            # The one pair that there is leads nowhere else.
            stopped(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
            stopped(socket.socketpair, socket.AF_UNIX, socket.SOCK_SEQPACKET)
            one, other = socket.socketpair()
            for address in ({servers[2].getsockname()!r}, {servers[3].getsockname()!r}):
                stopped(one.connect, address)
                stopped(one.sendto, b"x", address)
                stopped(one.bind, address)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 1))
            stopped(one.sendmsg, [b"x"], [rights])
            one.send(b"x")
            assert other.recv(1) == b"x"
            stopped(one.listen)
            async def answer(): return 42
            assert asyncio.run(answer()) == 42
            """,
            plan,
        )
        for server in servers:
            with pytest.raises(BlockingIOError):
                server.accept() if server.type == socket.SOCK_STREAM else server.recv(1)


def test_processes(plan: Protection) -> None:
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        attack(
            f"""
            import fcntl, multiprocessing, signal, subprocess, threading
            parent, other = {os.getpid()}, {bystander.pid}
            for _ in range(100): stopped(os.fork)
            stopped(os.forkpty)
            stopped(os.posix_spawn, "/bin/true", ["true"], {{}})
            stopped(os.execv, "/bin/true", ["true"])
            stopped(subprocess.run, ["true"])
            stopped(subprocess.run, "true", shell=True)
            assert os.system("true") != 0
            assert libc.system(b"true") != 0
            stopped(os.popen, "true")
            stopped(multiprocessing.Process(target=print).start)
            stopped(threading.Thread(target=print).start)
            assert libc.fork() == -1 and libc.vfork() == -1
            for victim in (parent, other, os.getppid(), 1, -1, 0, -os.getpgrp()):
                stopped(os.kill, victim, signal.SIGKILL)
                stopped(os.kill, victim, 0)
            stopped(os.killpg, 0, signal.SIGKILL)
            stopped(signal.pidfd_send_signal, 0, 0)
            stopped(os.pidfd_open, other)
            for victim in (parent, other):
                stopped(os.sched_setaffinity, victim, {{0}})
                stopped(os.setpriority, os.PRIO_PROCESS, victim, 19)
                stopped(os.sched_setscheduler, victim, 0, os.sched_param(0))
                import resource
                stopped(resource.prlimit, victim, resource.RLIMIT_NOFILE, (0, 0))
                assert libc.ptrace(16, victim, 0, 0) == -1
                reads = os.pipe()
                for command in (8, 10, 15):  # F_SETOWN, F_SETSIG, F_SETOWN_EX
                    stopped(fcntl.fcntl, reads[0], command, victim)
            for action in (os.setuid, os.setgid, os.seteuid, os.nice):
                stopped(action, 0)
            stopped(os.setsid)
            stopped(os.setpgid, 0, 0)
            stopped(os.setgroups, [])
            """,
            plan,
        )
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert not children(), "a process was left behind"


def children() -> list[int]:
    """Processes of this one that run the sandbox's child."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and "sandbox_child" in (entry / "cmdline").read_text()
                and f"PPid:\t{os.getpid()}\n" in (entry / "status").read_text()
            ):
                found.append(int(entry.name))
    return found


def test_seen_from_outside(plan: Protection) -> None:
    """Each layer is there, whether or not another one would have stopped the attacks as well."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_python, "while True: pass", seconds=1, protection=plan)
        until = time.monotonic() + 20
        status = {"Seccomp": "0"}
        while status["Seccomp"] != "2" and time.monotonic() < until:
            for child in children():
                with contextlib.suppress(OSError):
                    lines = Path(f"/proc/{child}/status").read_text().splitlines()
                    status = dict(line.split(":\t", 1) for line in lines)
                    spaces = {
                        name: Path(f"/proc/{child}/ns/{name}").readlink()
                        for name in ("net", "ipc", "mnt", "uts", "user")
                    }
                    root = {each.name for each in Path(f"/proc/{child}/root").iterdir()}
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
        for name, space in spaces.items():
            shared = space == Path(f"/proc/self/ns/{name}").readlink()
            assert shared == (not (plan.user if name == "user" else plan.namespaces)), name
        assert ("room-of-the-program" in root and "proc" not in root) == plan.mounts
        assert running.result().why == "timeout"


# By hand from asm/unistd_64.h: what has been a way out of sandboxes, or changes the machine.
_DANGEROUS = {
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "request_key": 249,
    "keyctl": 250, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "reboot": 169,
    "kexec_load": 246, "init_module": 175, "finit_module": 313, "delete_module": 176, "iopl": 172,
    "ioperm": 173, "swapon": 167, "sethostname": 170, "setdomainname": 171, "settimeofday": 164,
    "clock_settime": 227, "adjtimex": 159, "syslog": 103, "acct": 163, "quotactl": 179,
    "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64,
    "mq_open": 240, "inotify_init1": 294, "fanotify_init": 300, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "mount_setattr": 442, "seccomp": 317, "prctl": 157, "arch_prctl": 158, "personality": 135,
    "modify_ldt": 154, "io_setup": 206, "io_uring_setup": 425, "io_uring_enter": 426,
    "timer_create": 222, "unshare": 272, "setns": 308, "clone": 56, "fork": 57, "vfork": 58,
    "clone3": 435, "execve": 59, "execveat": 322, "ptrace": 101, "process_vm_readv": 310,
    "process_vm_writev": 311, "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424,
    "process_madvise": 440, "kcmp": 312, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "sendmsg": 46,
    "recvmsg": 47, "sendmmsg": 307, "setsockopt": 54, "setuid": 105, "setreuid": 113,
    "setresuid": 117, "capset": 126, "setrlimit": 160, "chmod": 90, "fchmod": 91, "fchmodat": 268,
    "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "utimensat": 280,
    "futimesat": 261, "truncate": 76, "link": 86, "symlink": 88, "mknod": 133, "mknodat": 259,
    "setxattr": 188, "fsetxattr": 190, "openat2": 437, "vmsplice": 278, "splice": 275, "tee": 276,
    "sched_setaffinity": 203, "sched_setscheduler": 144, "setpriority": 141, "ioprio_set": 251,
    "migrate_pages": 256, "move_pages": 279, "mbind": 237, "set_mempolicy": 238, "mlockall": 151,
    "vhangup": 153, "sysfs": 139, "lookup_dcookie": 212, "landlock_create_ruleset": 444,
    "process_mrelease": 448, "futex_waitv": 449, "flock": 73,
}  # fmt: skip


@intel
def test_system_calls(plan: Protection) -> None:
    numbers = sorted(_DANGEROUS.values())
    everything = {**sandbox_filter._ALLOWED, **sandbox_filter._NAMES}
    known = {pair[0] for pair in everything.values()} | {2, 257, 62, 234, 200, 302, 72, 16, 53, 44}
    known |= {335, 336}  # uretprobe, uprobe: the kernel lets no filter see them, and raises SIGILL
    others = [n for n in range(600) if n not in known and n not in numbers]
    attack(
        f"""
        for number in {numbers}: denied(number, 0, 0, 0, 0, 0, 0)
        for number in {others}: denied(number, -1, -1, -1, -1, -1, -1)
        for flags in (0, 17, 0x10000000, 0x3d0f00, 0x100 | 0x200 | 0x10000 | 0x800, 0x4111):
            denied(56, flags, 0, 0, 0, 0)
        denied(62, {os.getpid()}, 9)
        denied(234, {os.getpid()}, {os.getpid()}, 9)
        denied(200, {os.getpid()}, 9)
        denied(16, 0, 0x5412, ctypes.create_string_buffer(b"x"))  # TIOCSTI: types for the user
        denied(16, 0, 0x541c, 0)  # TIOCLINUX
        denied(302, {os.getpid()}, 7, 0, 0)
        # The kernel reads 32 bits of these; what stands above them must not matter.
        denied(53, 1 | 1 << 32, 2, 0, ctypes.create_string_buffer(8))
        denied(72, 0, 8 | 1 << 32, {os.getpid()})
        denied(44, 0, ctypes.create_string_buffer(b"x"), 1, 0, 1 << 32, 0)
        """,
        plan,
    )


@intel
@pytest.mark.parametrize(
    "machine_code",
    ["b8 14 00 00 00 cd 80 c3", "b8 27 00 00 40 0f 05 c3"],  # getpid by int 0x80, by x32
    ids=["int 0x80", "x32"],
)
def test_calls_of_another_architecture_end_the_program(machine_code: str) -> None:
    outcome = run_python(
        "import ctypes, mmap\n"
        "page = mmap.mmap(-1, 4096, prot=7)\n"
        f"page.write(bytes.fromhex({machine_code!r}))\n"
        "place = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(place)()\n"
    )
    assert outcome.why == "failed"
    assert f"signal {int(signal.SIGSYS)}" in outcome.detail or "signal 11" in outcome.detail


@pytest.mark.parametrize(("before", "why"), [("", "failed"), ("0" * 32, "passed")])
def test_all_that_a_program_wrote_read_at_once(before: str, why: str) -> None:
    """By a judge that was kept waiting: that the program began stands in front of its flood."""
    told = f"ready\\n{before}{'x' * 60_000}"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.stdout.write('{told}')"],
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    process.wait()
    outcome = sandbox_process._judge(process, "pass", b"0" * 32, 10.0)
    assert isinstance(outcome, Outcome)
    assert outcome.why == why
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize(
    "message",
    [b"ready\n" + b"0" * 32, b"0" * 32, b"passed", b"memory no", b"", b"refused x", b"x" * 10**6],
)
def test_success_cannot_be_claimed(message: bytes) -> None:
    """Written to every descriptor there is; `memory` is no better than `failed`."""
    outcome = run_python(
        "import os\nfor n in range(64):\n"
        f"  try: os.write(n, {message!r}[:60000])\n"
        "  except OSError: pass\nos._exit(0)"
    )
    assert not outcome.passed
    assert outcome.why == ("memory" if message.startswith(b"memory") else "failed")


def test_tests_are_nowhere_to_be_read_while_the_program_is_defined() -> None:
    """Not in a file, not in the arguments: they are in memory alone."""
    attack(
        """
        assert sys.argv == [""] or all("expected" not in each for each in sys.argv)
        assert "__file__" not in globals()
        stopped(open, sys.argv[0])
        stopped(open, "<program>")
        import inspect
        stopped(inspect.getsource, stopped)
        """
    )


_WITHOUT = """
import ctypes, struct, sys
denied = {denied}
code = [struct.pack("=HBBI", 0x20, 0, 0, 0)]
for number, error in denied:
    code.append(struct.pack("=HBBI", 0x15, 0, 1, number))
    code.append(struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | error))
code.append(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(code), b"".join(code))), 0, 0) == 0
from llamita.errors import UserError
from llamita.evaluation.sandbox import about, protect, run_python
try:
    found = protect()
    print("filter" * found.filter, "landlock" * found.landlock, "mounts" * found.mounts)
    print(run_python("assert 1").why)
except UserError as error:
    print("refused:", error)
    print(run_python("import socket, os\\ntry: os.fork()\\nexcept OSError: pass\\nelse: 1/0",
          unsafe=True).why, "NOT SAFE" in about())
"""
_UNSHARE, _MOUNT, _LANDLOCK, _PRCTL = (272, 1), (165, 1), (444, 38), (317, 38)


@intel
@pytest.mark.parametrize(
    ("denied", "said"),
    [
        # Docker as it comes: no namespaces; Landlock where the kernel has it
        ([_UNSHARE, _MOUNT], ["filter landlock ", "passed"]),
        # Ubuntu 24.04 for programs it does not know: a namespace, and no rights in it
        ([_MOUNT], ["filter landlock ", "passed"]),
        # RHEL 8, WSL: no Landlock
        ([_LANDLOCK], ["filter  mounts", "passed"]),
        # neither: refused, and with --unsafe-code processes and network are still shut
        ([_LANDLOCK, _UNSHARE], ["refused: generated code cannot", "passed True"]),
    ],
)
def test_machines_with_less(denied: list[tuple[int, int]], said: list[str]) -> None:
    if not (sandbox.protect().landlock and sandbox.protect().mounts):
        pytest.skip("this machine itself has less")
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT.format(denied=denied)],
        capture_output=True,
        text=True,
        check=True,
    )
    for line, wanted in zip(done.stdout.splitlines(), said, strict=True):
        assert line.startswith(wanted), done.stdout


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    sandbox._best.cache_clear()
    try:
        with pytest.raises(UserError, match="--unsafe-code"):
            run_python("assert 1")
        assert sandbox.protect(unsafe=True) == Protection()
        assert run_python("assert 1", unsafe=True) == Outcome("passed")
        assert "NOT SAFE" in sandbox.about()
    finally:
        sandbox._best.cache_clear()


def test_without_protection_processes_are_ended_all_the_same() -> None:
    seconds = f"98765.{os.getpid()}"
    outcome = run_python(
        "import subprocess, os\nassert os.getpgrp() == os.getpid()\n"
        f"subprocess.Popen(['sleep', '{seconds}'])\nwhile True: pass",
        seconds=0.5,
        unsafe=True,
        protection=Protection(),
    )
    assert outcome.why == "timeout"
    for _ in range(50):
        if not any(seconds in text for text in command_lines()):
            return
        time.sleep(0.1)
    raise AssertionError("a process was left behind")


def command_lines() -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield entry.read_text()


def test_a_layer_that_fails_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be shut in is not run, and not counted as failed."""
    monkeypatch.setattr(sandbox_process, "_readable", lambda: ["/no/such/place"])
    with pytest.raises(UserError, match="it was not run"):
        run_python("assert 1", protection=SAFE[0])
    monkeypatch.setattr(sandbox_process, "_PYTHON", ("/bin/false",))
    with pytest.raises(UserError, match="status 1"):
        run_python("assert 1", protection=SAFE[0])


def test_a_program_does_not_outlive_its_judge() -> None:
    judge = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from llamita.evaluation.sandbox import protect, run_python\n"
            "protect()\nprint('now', flush=True)\nrun_python('while True: pass', seconds=100)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert judge.stdout is not None
    assert judge.stdout.readline() == "now\n"
    mine: list[Path] = []
    until = time.monotonic() + 20
    while not mine and time.monotonic() < until:
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                if f"PPid:\t{judge.pid}\n" in status.read_text():
                    mine.append(status.parent)
    time.sleep(0.5)  # until it is shut in, which is when it is bound to its parent
    judge.kill()
    judge.wait()
    judge.stdout.close()
    assert mine
    while mine[0].exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not mine[0].exists()


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="seconds 0"):
        run_python("", seconds=0)
    with pytest.raises(UserError, match="memory_bytes 1,000"):
        run_python("", memory_bytes=1000)
    assert run_python("#" * 5_000_000).why == "failed"


def test_long_programs_and_packages() -> None:
    assert run_python("x = 1\n" * 20_000 + "assert x").passed  # more than a pipe holds
    text = "import numpy as np\na = np.ones((300, 300))\nassert (a @ a)[0, 0] == 300"
    assert run_python(text).passed  # whose libraries would start a thread a core


def test_a_set_has_the_same_order_each_time() -> None:
    text = "found = ''.join({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})\nassert 0, found"
    assert len({run_python(text).detail for _ in range(4)}) == 1


def judged(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a filter says of a call: the instructions that there are, as the kernel reads them."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *(*arguments, *[0] * 6)[:6])
    code = [struct.unpack_from("=HBBI", program, place) for place in range(0, len(program), 8)]
    place = accumulator = 0
    while True:
        kind, yes, no, value = code[place]
        place += 1
        if kind == 0x06:
            return value
        if kind == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif kind == 0x54:
            accumulator &= value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value}[kind]
            place += yes if holds else no


# By hand from asm-generic/unistd.h, which aarch64 has its numbers from.
_ARM_OPEN = {"openat": 56, "read": 63, "mmap": 222, "exit_group": 94, "getrandom": 278, "futex": 98}
_ARM_SHUT = {
    "socket": 198, "connect": 203, "bind": 200, "sendmsg": 211, "clone": 220, "execve": 221,
    "ptrace": 117, "mount": 40, "umount2": 39, "unshare": 97, "setns": 268, "bpf": 280,
    "fchmodat": 53, "fchownat": 54, "utimensat": 88, "truncate": 45, "setxattr": 5, "mknodat": 33,
    "symlinkat": 36, "linkat": 37, "memfd_create": 279, "shmget": 194, "prctl": 167, "chroot": 51,
    "setuid": 146, "capset": 91, "seccomp": 277, "io_setup": 0, "timer_create": 107, "keyctl": 219,
    "process_vm_writev": 271, "perf_event_open": 241, "userfaultfd": 282, "sched_setaffinity": 122,
}  # fmt: skip
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def test_the_filter_for_another_architecture() -> None:
    """It cannot be run on this one, so it is read."""
    arm = 0xC00000B7
    program = sandbox_filter.system_call_filter(
        "aarch64", 4321, opens_to_write=False, changes_names=False
    )
    for name, number in _ARM_OPEN.items():
        assert judged(program, arm, number) == _ALLOW, name
    for name, number in _ARM_SHUT.items():
        assert judged(program, arm, number) == _EPERM, name
    assert judged(program, arm, 435) == judged(program, arm, 425) == _ENOSYS  # clone3, io_uring
    assert judged(program, 0xC000003E, 63) == _KILL
    assert judged(program, arm, 129, 4321, 9) == _ALLOW  # kill
    assert judged(program, arm, 129, 1, 9) == _EPERM
    assert judged(program, arm, 56, 0, 0, 0o2) == _EPERM  # openat, O_RDWR
    assert judged(program, arm, 56, 0, 0, 0o100) == _EPERM
    assert judged(program, arm, 56, 0, 0, 0o2000000) == _ALLOW  # O_CLOEXEC
    assert judged(program, arm, 35) == _EPERM  # unlinkat
    writing = sandbox_filter.system_call_filter(
        "aarch64", 4321, opens_to_write=True, changes_names=True
    )
    assert judged(writing, arm, 35) == judged(writing, arm, 56, 0, 0, 0o102) == _ALLOW
    assert len(program) // 8 < 4096  # BPF_MAXINSNS
