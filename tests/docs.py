"""The documentation as a reader uses it: its fenced blocks, and a folder in which they are pasted one after another."""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import socket
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import typer
import yaml

from pipelines import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SHIM = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.environ["CLIPMILL_COMMANDS"])
    connection.sendall(json.dumps([os.getcwd(), sys.argv[1:]]).encode() + b"\\n")
    answer = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
sys.stdout.write(answer["out"]), sys.stderr.write(answer["err"])
sys.exit(answer["code"])
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.lstrip("\n").partition("\n")[0].strip()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.first_line!r}"


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in _FENCE.finditer(text)]


@dataclass(frozen=True)
class Instead:
    """A piece of a block that a test cannot run as it stands, what runs in its place, and why."""

    old: str
    new: str
    because: str

    def applied(self, text: str) -> str:
        assert self.old in text, f"{self.old!r} is not in the block any more"
        return text.replace(self.old, self.new)


@dataclass
class Reader:
    """Someone with a terminal in `folder`, who pastes blocks; `clipmill` runs in this process, with the tests' Ray.

    `environment` is added to the shell's. With `in_process=False` commands run as processes of their own.
    """

    folder: Path
    in_process: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    printed: str = ""
    """What the blocks so far have printed, both streams."""

    def paste(self, script: str, *, codes: Sequence[int] = (0,)) -> str:
        """Run a script in bash, as it stands; returns what it printed."""
        tools = self.folder / ".tools"
        environment = {**of_a_user(), **self.environment, "COLUMNS": "110"}
        environment["PATH"] = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
        environment["CLIPMILL_COMMANDS"] = str(tools / "s")
        written = tools / "printed"
        with self._commands(tools) as answer, written.open("wb") as output_file:
            shell = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output_file,
                stderr=subprocess.STDOUT,
            )
            try:
                while shell.poll() is None:
                    answer()
            finally:
                shell.kill()
                shell.wait()
        output = written.read_text(encoding="utf-8", errors="replace")
        self.printed += output
        assert shell.returncode in codes, f"exit code {shell.returncode}\n$ {script}\n{output}"
        return output

    def python(self, text: str, *arguments: str) -> str:
        """Run a script as `python FILE` does, in this process; returns what it printed."""
        path = self.folder / "pasted.py"
        path.write_text(text, encoding="utf-8")
        printed = io.StringIO()
        with _at(self.folder, ["pasted.py", *arguments]), contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
        self.printed += printed.getvalue()
        return printed.getvalue()

    def write(self, name: str, text: str) -> Path:
        """Save a block under a name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    @contextlib.contextmanager
    def _commands(self, tools: Path) -> Iterator[Callable[[], None]]:
        """A command `clipmill` for the shell, which asks this process; the function that answers what has been asked.

        Commands install signal handlers, so they run in the main thread.
        """
        tools.mkdir(exist_ok=True)
        if self.in_process:
            (tools / "clipmill").write_text(f"#!{sys.executable} -S\n{_SHIM}")
            (tools / "clipmill").chmod(stat.S_IRWXU)
        (tools / "s").unlink(missing_ok=True)
        with contextlib.chdir(tools), socket.socket(socket.AF_UNIX) as server:  # addresses have at most 107 bytes
            server.bind("s")
            server.listen()
            server.settimeout(0.05)

            def answer() -> None:
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    with connection, connection.makefile("rwb") as stream:
                        cwd, arguments = json.loads(stream.readline())
                        stream.write(json.dumps(_run(Path(cwd), arguments)).encode())

            yield answer


def _run(folder: Path, arguments: list[str]) -> dict[str, str | int]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with _at(folder, ["clipmill", *arguments]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return {"out": out.getvalue(), "err": err.getvalue(), "code": code}


@contextlib.contextmanager
def _at(folder: Path, arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    with contextlib.chdir(folder), warnings.catch_warnings():
        sys.argv = arguments
        try:
            yield
        finally:
            sys.argv = before


def of_a_user() -> dict[str, str]:
    """The environment without what the tests' Ray has added to it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH" and "RAY_AUTH" not in name}


def check_command_line(words: Sequence[str]) -> None:
    """Let the command line of clipmill take its arguments, without running anything. Fails for what it would refuse."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    name, *arguments = words
    command = group.commands[name]  # type: ignore[union-attr]
    with command.make_context(name, list(arguments)):
        pass


def commands_of(script: str) -> Iterator[list[str]]:
    """The words of each command of a simple script: lines joined at backslashes, comments taken off."""
    for line in script.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def session(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a session with `$ ` in front, each with what it printed."""
    lines = text.splitlines()
    while lines:
        assert lines[0].startswith("$ "), lines[0]
        command = lines.pop(0)[2:]
        while not _is_whole(command):
            command += "\n" + lines.pop(0)
        shown: list[str] = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        yield command, "\n".join(shown) + "\n"


def _is_whole(command: str) -> bool:
    try:
        shlex.split(command)
    except ValueError:
        return False
    return True


def is_printed(shown: str, printed: str) -> list[str]:
    """Of what a block shows as output, the headings and names that are not in what was printed. Figures may differ."""
    words = " ".join(printed.split())
    cells = [cell for line in shown.splitlines() for cell in re.split(r"\s{2,}", line.strip())]
    return [cell for cell in cells if cell and not re.search(r"[\d–()]", cell) and cell not in words]


def yaml_of(block: Block) -> dict[str, object]:
    """The mapping in a YAML block, which may be indented as in the middle of a file."""
    values = yaml.safe_load(block.text)
    assert isinstance(values, dict), f"{block} is not a mapping"
    return values
