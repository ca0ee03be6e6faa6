"""Nothing that a file says reaches a terminal as it is: messages, progress, logs of any library."""

import logging
import subprocess
import sys

import pytest

from pipelines.cli_shared import complain, say
from pipelines.printable import PrintableFormatter
from pipelines.progress import Reporter, note

EVIL = "a\x1b]0;owned\x07\x1b[2J[/red]\u202e\udcff"
SAID = r"a\x1b]0;owned\x07\x1b[2J[/red]\u202e\udcff"


def test_notes_and_progress(capsys: pytest.CaptureFixture[str]):
    note(f"{EVIL}\nsecond")
    with Reporter(EVIL, 2, unit="steps") as reporter:
        reporter.waiting(EVIL)
        reporter.advance(2, EVIL)
    printed = capsys.readouterr().err
    assert f"note: {SAID}\nsecond\n" in printed
    assert printed.count(SAID) == 6
    assert all(line.isprintable() for line in printed.splitlines())


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Reporter(EVIL, 2, unit="[/steps]") as reporter:
        reporter.waiting(EVIL)
        reporter.advance(2, EVIL)
    assert "\x1b]0" not in capsys.readouterr().err


def test_no_credential_of_an_address_is_printed(capsys: pytest.CaptureFixture[str]):
    address = "https://user:SECRET@host/d/x.mp4?X-Amz-Signature=SECRET&id=7"
    note(f"reading {address}.")
    complain(f"cannot read {address}: no")
    say(address)
    with Reporter(f"a {address}", 1, unit="steps") as reporter:
        reporter.waiting(address)
        reporter.advance(1, address)
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "%s", (address,), None)
    printed = "".join(capsys.readouterr()) + PrintableFormatter().format(record)
    assert "SECRET" not in printed
    assert printed.count("https://host/d/x.mp4?id=7") == 9


def test_a_log_record_is_one_line_and_a_traceback_keeps_its_own():
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "%s\nINFO: all well", (EVIL,), None)
    assert PrintableFormatter().format(record) == rf"WARNING: {SAID}\nINFO: all well"
    try:
        raise ValueError(EVIL)
    except ValueError:
        record.exc_info = sys.exc_info()
    _, *trace = PrintableFormatter().format(record).splitlines()
    assert trace[0].startswith("Traceback")
    assert trace[-1] == f"ValueError: {SAID}"


@pytest.mark.slow
def test_every_command_prints_warnings_of_libraries_so():
    script = (
        "import logging, sys, warnings\n"
        "sys.argv = ['clipmill', 'status', '/nowhere']\n"
        "from pipelines import cli, status as statuses\n"
        "def status(*_, **__):\n"
        "    logging.getLogger('library').warning('\\x1b[31mred')\n"
        "    warnings.warn('\\x1b[32mgreen')\n"
        "statuses.status = status\n"
        "try:\n    cli.main()\nexcept Exception:\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert r"WARNING: \x1b[31mred" in done.stderr
    assert r"\x1b[32mgreen" in done.stderr
    assert "\x1b" not in done.stderr
