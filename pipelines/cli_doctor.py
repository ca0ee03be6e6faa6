"""The command `clipmill doctor`."""

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli_shared import DATASETS, FAILED, Address, AsJson, ConfigFile, Without, console, curate_config, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.doctor import Finding

app = typer.Typer()


@app.command(
    epilog="Exit codes: 0 no problem found, perhaps warnings; 1 a problem was found; 2 invalid request.",
    rich_help_panel=DATASETS,
)
def doctor(
    out: Annotated[
        str | None, typer.Option(help="Dataset folder that the run will write to.", show_default=False)
    ] = None,
    config: ConfigFile = None,
    without: Without = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Check what `clipmill curate` needs on every node, and print what to fix.

    Versions, codecs, a test scan, CPUs and quotas, memory, shared memory, open files, temporary space, GPUs, weights,
    endpoints of captioners, and write access to the dataset folder.
    """
    from pipelines.doctor import doctor as run

    listed = run(curate_config(config, without), address=address, out=out)
    levels = Counter(finding.level for finding in listed)
    if as_json:
        print(json.dumps({"ok": not levels["problem"], "findings": [asdict(finding) for finding in listed]}))
    else:
        _print(listed)
        say(f"{_counted(levels['problem'], 'problem')}, {_counted(levels['warning'], 'warning')}")
    if levels["problem"]:
        raise typer.Exit(FAILED)


def _print(listed: "Sequence[Finding]") -> None:
    from pipelines.grid import table

    rows: list[tuple[str, ...]] = []
    for finding in listed:
        rows.append((finding.level, finding.check, finding.node or "all", finding.found))
        if finding.advice:
            rows.append(("", "", "", f"-> {finding.advice}"))
    console().print(table("", ("", "check", "node", ""), rows))


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'s' * (count != 1)}"
