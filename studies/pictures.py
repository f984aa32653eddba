"""The pictures of README and reports, made anew: a terminal with an audit, the report's first screen, the MLflow UI.

    python -m studies.pictures terminal reports/audit.svg audit docs/examples/train.py
    python -m studies.pictures page runs/quick-digits/report.html reports/quick/report.png
    python -m studies.pictures mlflow reports/mlflow --runs runs

`terminal` runs a kdbench command on a terminal and draws what it prints. `page` and `mlflow` need Chromium (Debian's
package `chromium`). `mlflow` starts `kdbench ui`, takes compare.png and table.png as a window of 1280 x 800 shows them
once MLflow's assistant is closed, and ends the server.
"""

import asyncio
import base64
import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import click

from kdbench.harness.cli import run_cli
from kdbench.kd.errors import InputError

_WIDTH, _HEIGHT = 1280, 800


@click.group()
def main() -> None:
    """Pictures of the program, made from the program."""


# -- a terminal


@main.command("terminal")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--width", type=click.IntRange(40, 200), default=96, show_default=True, help="Columns.")
@click.argument("arguments", nargs=-1, required=True)
def terminal_command(output: Path, width: int, arguments: tuple[str, ...]) -> None:
    """Run `kdbench ARGUMENTS...` on a terminal and draw what it prints as SVG."""
    from rich.console import Console
    from rich.text import Text

    printed = _on_a_terminal([sys.executable, "-m", "kdbench", *arguments], width)
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(Text.assemble(("$ ", "bold green"), (f"kdbench {' '.join(arguments)}", "bold")), soft_wrap=True)
    console.print(Text.from_ansi(printed), overflow="fold")  # as a terminal does with lines that are too long
    title = f"kdbench {arguments[0]}"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_plain_fonts(console.export_svg(title=title, unique_id="kdbench")), encoding="utf-8")
    click.echo(str(output))


def _on_a_terminal(command: Sequence[str], width: int) -> str:
    """Return what a command prints on a terminal of this width, colours and all, without what it wiped out again."""
    main_end, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(command, stdout=other_end, stderr=other_end, stdin=subprocess.DEVNULL, env=environment)
    os.close(other_end)
    pieces = []
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody holds any more with an error
        while piece := os.read(main_end, 65536):
            pieces.append(piece)
    os.close(main_end)
    process.wait()
    text = b"".join(pieces).decode(errors="replace").replace("\r\n", "\n")
    lines = [re.split(r"\r|\x1b\[2K", line)[-1] for line in text.split("\n")]  # a progress bar draws over itself
    return re.sub(r"\x1b\[\?25[lh]|\x1b\[\d*[AJK]", "", "\n".join(lines)).strip("\n")


def _plain_fonts(svg: str) -> str:
    """Return rich's SVG without the fonts that it would fetch from elsewhere."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    return svg.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', monospace")


# -- pages


@main.command("page")
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--width", type=int, default=_WIDTH, show_default=True)
@click.option("--height", type=int, default=_HEIGHT, show_default=True)
def page_command(page: Path, output: Path, width: int, height: int) -> None:
    """Take a page as a window of this size first shows it."""

    async def take() -> None:
        async with _browser(width, height) as tab:
            await tab.open(page.resolve().as_uri(), 2)
            await tab.take(output)

    asyncio.run(take())


@main.command("mlflow")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--runs", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--port", type=int, default=5055, show_default=True)
def mlflow_command(folder: Path, runs: Path, port: int) -> None:
    """Take the two pages that `kdbench ui` links to: compare.png and table.png."""
    command = [sys.executable, "-m", "kdbench", "ui", "--runs", str(runs), "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            links = _links(server, log, port)
            asyncio.run(_take_links(links, folder))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)  # kdbench ui and the server that it started, and nobody else
            server.wait(timeout=60)


def _links(server: "subprocess.Popen[bytes]", log: Any, port: int) -> list[str]:
    """Return the links that `kdbench ui` printed, once its server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            log.seek(0)
            found = re.findall(r"http://\S+/#/experiments/\S+", log.read())
            if len(found) >= 2:
                return list(found[:2])
        time.sleep(0.5)
    log.seek(0)
    raise InputError(f"kdbench ui did not start on port {port}; it said: {log.read()}")


async def _take_links(links: Sequence[str], folder: Path) -> None:
    async with _browser(_WIDTH, _HEIGHT) as tab:
        await tab.open(links[0].partition("#")[0], 5)
        await tab.run("localStorage.clear()")
        for key, value in (
            ("mlflow.assistant.panelOpen", "false"),
            ("mlflow.assistant.fab.autoOpenedOnFirstLoad", "true"),
        ):
            await tab.run(f"localStorage.setItem('{key}_v1', '{value}')")
        for link, name in zip(links, ("compare.png", "table.png"), strict=True):
            await tab.open("about:blank", 1)
            await tab.open(link, 15)
            await tab.take(folder / name)


class _Tab:
    """A tab of a browser, spoken to over its debugging protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._last = socket, 0

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._last:
                return dict(answer.get("result", {}))

    async def size(self, width: int, height: int) -> None:
        """Show pages as a window of this size does."""
        await self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def open(self, address: str, seconds: float) -> None:
        """Open a page and give it time to draw itself."""
        await self._call("Page.navigate", url=address)
        await asyncio.sleep(seconds)

    async def run(self, script: str) -> None:
        """Run a line of JavaScript in the page."""
        await self._call("Runtime.evaluate", expression=script)

    async def take(self, output: Path) -> None:
        """Write what the window shows as PNG."""
        shot = await self._call("Page.captureScreenshot", format="png")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(base64.b64decode(shot["data"]))
        click.echo(f"{output} ({output.stat().st_size / 1024:.0f} KB)")


@contextlib.asynccontextmanager
async def _browser(width: int, height: int) -> AsyncIterator[_Tab]:
    """Start Chromium without a window and yield a tab of it; end it afterwards."""
    import aiohttp

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise InputError("Chromium was not found; install it (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [program, *options, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = await _debugging_port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    (page,) = [tab for tab in await answer.json() if tab["type"] == "page"]
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    tab = _Tab(socket)
                    await tab.size(width, height)
                    yield tab
        finally:
            process.terminate()
            process.wait(timeout=30)


async def _debugging_port(file: Path) -> int:
    for _ in range(200):
        if file.is_file() and (lines := file.read_text().split()):
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise InputError("Chromium did not start")


if __name__ == "__main__":
    sys.exit(run_cli(lambda: main.main(prog_name="python -m studies.pictures", standalone_mode=False)))
