"""What captioners that ask an endpoint have in common: how to reach it, and why there is no caption."""

from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator

from clipmill.config import Config
from curation.inputs.captions import CaptionError


class NoCaption(Exception):
    """Why one clip gets no caption; becomes the error of that caption, and `kind` its `error_kind`."""

    def __init__(self, reason: str, kind: CaptionError = "failed") -> None:
        super().__init__(reason)
        self.kind = kind


class EndpointConfig(Config):
    """How to reach a model and what to ask of it. A key never is a setting: `api_key_env` names what holds it."""

    base_url: str | None = None
    """Address of the endpoint up to and including the version, such as http://localhost:8000/v1. Required."""
    model: str | None = None
    """Name of the model that the endpoint serves. Required."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_]*_API_KEY$")
    """The environment variable with the key, whose name ends in _API_KEY: no configuration gets to send other secrets.
    Without one, OPENAI_API_KEY goes to OpenAI's own hosts, and no key to others."""
    timeout_s: float = Field(60.0, gt=0)
    """Longest time from the beginning of a request to the last byte of its answer."""
    retries: int = Field(3, ge=0, le=100)
    """How often a failed request is sent again, with growing pauses between."""
    max_in_flight: int = Field(8, gt=0, le=1024)
    """Most requests under way at the same time, over all workers of a run. Set it to what the endpoint serves in
    parallel."""
    give_up_after: int = Field(5, gt=0)
    """Failures in a row to reach the endpoint after which nothing is sent for `pause_s`."""
    pause_s: float = Field(60.0, ge=0)
    """Pause after `give_up_after` failures; then one request tries the endpoint again."""
    max_tokens: int | None = Field(256, gt=0)
    """Longest answer. null does not send it, for models that refuse it."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature; 0 is as deterministic as the endpoint can be. null does not send it, for models that refuse
    it."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of the request, sent unchanged."""

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("no user, password or query may be in it: the configuration is saved with the dataset")
        return value

    def key_variable(self) -> str | None:
        """The environment variable whose value is sent, if any is."""
        parts = urlsplit(self.base_url or "")
        host = parts.hostname or ""
        openai = parts.scheme == "https" and (host == "openai.com" or host.endswith(".openai.com"))
        return self.api_key_env or ("OPENAI_API_KEY" if openai else None)
