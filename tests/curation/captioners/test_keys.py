"""API keys and settings of endpoints: which key goes where, and what is rejected before work starts."""

import json
from typing import Any

import pytest

from clipmill.errors import UserError
from curation.captioners import captioner_spec
from curation.captioners.endpoint import VideoCaptioner, VideoConfig
from curation.captioners.endpoint_config import EndpointConfig
from tests.caption_server import CaptionServer, refuses, says
from tests.curation.captioners.endpoints import KEY, clips, one, video

# Keys and pictures stay where they belong


def test_the_key_is_sent_and_told_to_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_API_KEY", f" {KEY}\n")
    with CaptionServer(
        [refuses(401, f"wrong key {KEY}; you sent data:image/jpeg;base64,{'A' * 5000} " + "x" * 999)]
    ) as server:
        captioner = video(server.url, api_key_env="MY_API_KEY")
        (caption,) = captioner.caption(clips(1))
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert caption.error.startswith("HTTP 401: wrong key [key]; you sent [image] xxx")
    assert len(caption.error) < 250
    assert KEY not in str(captioner._config) + json.dumps(captioner._config.model_dump())


def test_the_usual_key_goes_to_openai_alone_unless_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with CaptionServer([says("x")]) as server:
        one(server)
        one(server, api_key_env="OPENAI_API_KEY")
    assert [KEY in str(headers) for headers in server.headers] == [False, True]


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://eu.api.openai.com/v1", "OPENAI_API_KEY"),
        ("http://api.openai.com/v1", None),
        ("https://api.openai.com.example.org/v1", None),
        ("https://notopenai.com/v1", None),
        ("http://localhost:8000/v1", None),
        (None, None),
    ],
)
def test_which_hosts_are_openais(url: str | None, variable: str | None):
    assert EndpointConfig(base_url=url).key_variable() == variable
    assert EndpointConfig(base_url=url, api_key_env="MY_API_KEY").key_variable() == "MY_API_KEY"


@pytest.mark.parametrize(
    "variable",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "GITHUB_TOKEN",
        "PATH",
        "_API_KEY",
        "X_API_KEY\n",
        "",
        KEY,
    ],
)
def test_a_configuration_cannot_have_other_secrets_sent(variable: str):
    with pytest.raises(UserError, match="api_key_env"):
        EndpointConfig.from_values({"api_key_env": variable}, origin="foreign.yaml")


def test_a_key_that_was_asked_for_has_to_be_there():
    with pytest.raises(UserError, match="NO_SUCH_API_KEY is not set"):
        video("http://127.0.0.1:1/v1", api_key_env="NO_SUCH_API_KEY")


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_env": KEY},
        {"base_url": "localhost:8000/v1"},
        {"base_url": f"https://user:{KEY}@example.org/v1"},
        {"base_url": f"https://example.org/v1?key={KEY}"},
        {"retries": -1},
        {"timeout_s": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused_without_repeating_a_key(settings: dict[str, Any]):
    with pytest.raises(UserError) as raised:
        EndpointConfig.from_values(settings, origin="x.yaml")
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("name", ["video", "merged"])
def test_an_endpoint_without_address_or_model_is_an_error_before_work_starts(name: str):
    with pytest.raises(UserError, match=f"captioner {name}: base_url and model not set"):
        captioner_spec(name)().load("cpu")
    with pytest.raises(UserError, match="model not set"):
        VideoCaptioner(VideoConfig(base_url="http://localhost:8000/v1")).load()
