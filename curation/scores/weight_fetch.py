"""Whether a server of weights answers, found out in seconds: the clients that fetch try for half a minute and more."""

import threading

from clipmill.errors import UserError

_PATIENCE_S = 5.0


class WeightsMissing(UserError):
    """Weights that are not on this machine and cannot be downloaded."""


def check_answers(url: str) -> None:
    """Ask for the headers of `url` once, through the environment's proxy if there is one.

    Any answer below 500 will do; what is missing or forbidden, the client that fetches says better. Raises OSError:
    no answer within 5 s (names are looked up and every address of a host is tried in that time), a server's error, or
    HF_HUB_OFFLINE is set, which stands for a network that is not to be used.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    outcome: list[BaseException | int] = []

    def ask() -> None:
        import httpx2

        try:
            outcome.append(httpx2.head(url, timeout=_PATIENCE_S).status_code)
        except Exception as error:
            outcome.append(error)

    # A thread, for no time-out of a client covers the look-up of a name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_S)
    if not outcome:
        raise OSError(f"{url} did not answer within {_PATIENCE_S:g} s")
    answer = outcome[0]
    if isinstance(answer, BaseException):
        raise OSError(f"{url}: {answer}") from answer
    if answer >= 500:
        raise OSError(f"{url} answered with HTTP {answer}")
