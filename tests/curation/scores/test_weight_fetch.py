"""Servers of weights that do not answer: an error that names the address, instead of minutes of waiting."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipmill.errors import UserError
from curation.scores import openclip
from curation.scores.aesthetics import Aesthetic
from curation.scores.weight_fetch import check_answers


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (503, False)])
def test_any_answer_but_a_servers_error_will_do(status: int, answers: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/weights"
        if answers:
            check_answers(url)
        else:
            with pytest.raises(OSError, match=r"answered with HTTP 503"):
                check_answers(url)
        server.shutdown()


def test_hf_hub_offline_stands_for_no_network_at_all(silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        check_answers(silent)
    with pytest.raises(UserError, match=r"cannot be downloaded \(HF_HUB_OFFLINE is set\)"):
        Aesthetic().load()


@pytest.mark.slow
def test_a_network_that_swallows_requests_is_named_for_heads_and_models(silent: str, tmp_path: Path, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, silent)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"cannot be downloaded .*github.com/LAION-AI"):
        Aesthetic().load()
    with pytest.raises(UserError, match=r"cannot be downloaded .*huggingface"):
        openclip.find("ViT-B-32", "openai")
