"""Settings of captioners that ask an endpoint."""

from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator

from clipmill.config import Config


class EndpointConfig(Config):
    """Endpoint, model and request settings. API keys are never settings: `api_key_env` names the environment
    variable."""

    base_url: str | None = None
    """Base URL of the endpoint including the version, such as http://localhost:8000/v1. Required."""
    model: str | None = None
    """Model name at the endpoint. Required."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_]*_API_KEY$")
    """Environment variable with the API key; its name must end in _API_KEY, so that a configuration cannot send other
    secrets. If unset, OPENAI_API_KEY is sent to OpenAI's own hosts, and no key to others."""
    timeout_s: float = Field(60.0, gt=0)
    """Timeout of a whole request, from its start to the last byte of the response."""
    retries: int = Field(3, ge=0, le=100)
    """Number of retries of a failed request, with exponential backoff."""
    max_in_flight: int = Field(8, gt=0, le=1024)
    """Maximum number of concurrent requests over the whole run. Set it to what the endpoint serves in parallel."""
    give_up_after: int = Field(5, gt=0)
    """Number of consecutive connection failures after which requests pause for `pause_s`."""
    pause_s: float = Field(60.0, ge=0)
    """Pause after `give_up_after` failures; then one request probes the endpoint."""
    max_tokens: int | None = Field(256, gt=0)
    """Maximum length of a response. null omits the parameter, for models that reject it."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature; 0 is as deterministic as the endpoint allows. null omits the parameter, for models that
    reject it."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Additional request fields, sent unchanged."""
    price_per_million_prompt_tokens: float | None = Field(None, ge=0)
    """Price of a million tokens of requests, in any currency. null: the price is not computed."""
    price_per_million_completion_tokens: float | None = Field(None, ge=0)
    """Price of a million tokens of answers, in the same currency."""

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must not contain a user, password or query: the configuration is saved with the dataset")
        return value

    def key_variable(self) -> str | None:
        """The environment variable whose value is sent, if any is."""
        parts = urlsplit(self.base_url or "")
        host = parts.hostname or ""
        openai = parts.scheme == "https" and (host == "openai.com" or host.endswith(".openai.com"))
        return self.api_key_env or ("OPENAI_API_KEY" if openai else None)
