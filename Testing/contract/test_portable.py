"""Every system: what Windows lacks is used only where the code has asked for the system, or expects it to be absent."""

import ast
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import pytest
from cli_factory import REPOSITORY

from MAESILLib.data.layouts import find_layout
from MAESILLib.data.names import LONGEST, plan_numbers
from MAESILLib.data.records import without_paths

LACKING = """
os: fork forkpty killpg getuid geteuid getgid getegid getgroups setsid setuid setgid setpgid getpgid mkfifo mknod nice
os: statvfs fstatvfs uname sysconf sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate pread pwrite wait
os: getloadavg waitid WNOHANG chown lchown openpty getpriority setpriority O_CLOEXEC O_NONBLOCK
signal: SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGSTOP SIGCONT SIGTSTP alarm setitimer pause
signal: pthread_sigmask pthread_kill sigwait
socket: AF_UNIX
modules: fcntl resource termios tty pty pwd grp posix syslog spwd crypt readline
"""
MEMBERS: dict[str, set[str]] = {}
for line in LACKING.split("\n")[1:-1]:
    MEMBERS.setdefault(line.partition(": ")[0], set()).update(line.partition(": ")[2].split())
MODULES = MEMBERS.pop("modules")
ARGUMENTS = {"preexec_fn", "start_new_session", "pass_fds", "process_group"}
TEXTS = ("/proc", "/dev/", "/sys/", "/tmp", "/etc/")
EXPECTED = {"OSError", "ImportError", "AttributeError", "FileNotFoundError", "ModuleNotFoundError"}


def posix_only(node: ast.AST) -> str:
    """Name what Windows lacks of a node of the syntax tree; or nothing."""
    if isinstance(node, ast.Import) and (found := MODULES.intersection(one.name for one in node.names)):
        return found.pop()
    if isinstance(node, ast.ImportFrom):
        lacking = MEMBERS.get(node.module or "", set()).intersection(one.name for one in node.names)
        return node.module or "" if node.module in MODULES else next(iter(lacking), "")
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.attr in MEMBERS.get(node.value.id, ()) else ""
    if isinstance(node, ast.keyword):
        return node.arg if node.arg in ARGUMENTS else ""
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text and (node.value == "fork" or node.value.startswith(TEXTS)) else ""


def asks(node: ast.AST) -> bool:
    """Tell whether a branch depends on the system, or expects what it does to be absent."""
    if isinstance(node, ast.If | ast.IfExp):
        return any(word in ast.unparse(node.test) for word in ("sys.platform", "os.name", "hasattr("))
    if isinstance(node, ast.Try):
        return any(handler.type and EXPECTED & set(ast.unparse(handler.type).strip("()").split(", "))
                   for handler in node.handlers)  # fmt: skip
    return False


def unguarded(node: ast.AST, is_guarded: bool = False) -> Iterator[str]:
    """Yield what Windows lacks below a node, with its line, where nothing has asked for the system."""
    if not is_guarded and (name := posix_only(node)):
        yield f"{getattr(node, 'lineno', '?')}: {name}"
    has_left = False
    for child in ast.iter_child_nodes(node):
        yield from unguarded(child, is_guarded or has_left or asks(node))
        # what follows "if sys.platform == ...: return" runs elsewhere
        has_left |= isinstance(child, ast.If) and asks(child) and isinstance(child.body[-1], ast.Return | ast.Raise)


def test_nothing_needs_posix() -> None:
    found = []
    for folder in ("MAESILLib", "MAESIL"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            lines = unguarded(ast.parse(path.read_text(encoding="utf-8")))
            found += [f"{path.relative_to(REPOSITORY)}:{line}" for line in lines]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        *("import fcntl", "from resource import getrlimit", "from os import fork", "import os\nos.killpg(1, 2)"),
        *("import signal\nsignal.SIGKILL", "open('/proc/self/maps')", "Popen(x, preexec_fn=f)", "get_context('fork')"),
        "import sys\nif sys.argv:\n    import fcntl",
    ],
)
def test_the_search_finds_it(text: str) -> None:
    assert len(list(unguarded(ast.parse(text)))) == 1
    below = "\n".join(f"    {line}" for line in text.splitlines())
    for guard in ("if sys.platform == 'win32':\n    pass\nelse:", "if hasattr(os, 'fork'):"):
        assert list(unguarded(ast.parse(f"{guard}\n{below}"))) == []
    assert list(unguarded(ast.parse(f"try:\n{below}\nexcept OSError:\n    pass"))) == []


class TestPaths:
    """Of Windows, as text."""

    @pytest.mark.parametrize(
        ("given", "names"),
        [
            ([r"C:\scans\a.nii.gz", r"D:\scans\b.nrrd"], ["a", "b"]),
            ([r"C:\p1\ct.nii.gz", r"C:\p2\ct.nii.gz", "p3/ct.nii"], ["p1_ct", "p2_ct", "p3_ct"]),
            ([r"C:\ct.nii", r"D:\ct.nii"], ["ct", "ct_2"]),
            ([r"\\server\share\x\ct.mha", r"\\?\C:\y\ct.mha"], ["x_ct", "y_ct"]),
            (["con.nii.gz", "NUL.nrrd", "aux.1.nii", "COM1", "com10.nii", "."],
             ["ct_con", "ct_NUL", "ct_aux.1", "ct_COM1", "com10", "volume"]),
            (["a.nii", "A.nii", "a_2.nii", "", "ct_0001"], ["a", "A_2", "a_2_2", "ct_0001", "ct_0001_2"]),
            (["a?*<>|b.nii", "c. .nii", "d."], ["a_b", "c", "d"]),
        ],
    )  # fmt: skip
    def test_names(self, given: list[str], names: list[str]) -> None:
        assert plan_numbers(given, [""] * len(given), set()) == names

    def test_long_paths_give_short_names(self) -> None:
        deep = ["/".join(["folder"] * 60 + [side, "x" * 300 + ".nii.gz"]) for side in "ab"]
        names = plan_numbers(deep, ["", ""], set())
        assert len(set(names)) == 2
        assert all(len(name) <= LONGEST + 9 for name in names)

    def test_layouts_and_reasons(self) -> None:
        path = PureWindowsPath(r"C:\data\MSD\Task03_Liver\imagesTr\liver_0.nii.gz")
        assert find_layout(Path(path.as_posix())) == "msd"
        assert without_paths(rf"{path} is cut short; \\?\C:\x\y.raw too", str(path)) == "it is cut short; a file too"
