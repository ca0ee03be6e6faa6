"""A web server of the files in a folder, with byte ranges and a delay before each answer, in a process of its own.

python -m benchmarks.range_server FOLDER --delay-ms 20      prints its address
"""

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web


@contextmanager
def serving(folder: Path, *, delay_ms: float) -> Iterator[str]:
    """The address of a server of `folder` for as long as the block lasts."""
    command = [sys.executable, "-m", "benchmarks.range_server", str(folder), "--delay-ms", str(delay_ms)]
    # A local Ray of this process sets PYTHONSAFEPATH: the working directory is no place to import from then.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


async def _serve(folder: Path, delay_s: float) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        path = folder / request.match_info["name"]
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.folder, arguments.delay_ms / 1000))
