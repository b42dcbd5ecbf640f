"""Who is logged in to a Hub, and whether a gated repository may be read; one request each, no retries."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from depi.errors import first_line
from depi.hub.client import session
from depi.hub.client.api import endpoint
from depi.hub.client.retry import EXPECTED

session.install()


@dataclass(frozen=True)
class Login:
    """What the Hub answers about this machine's token.

    reachable: whether the Hub answered at all.
    user: the owner of the token; None without a valid token.
    role: what the token may do: read, write, or fineGrained.
    problem: why the token cannot be used, or "".
    """

    reachable: bool
    user: str | None = None
    role: str | None = None
    problem: str = ""


def who_am_i() -> Login:
    """Ask the Hub that HF_ENDPOINT names; without a token this checks only whether it can be reached."""
    api = HfApi(endpoint=endpoint())
    token = get_token()
    try:
        if token is None:
            next(iter(api.list_models(limit=1)), None)
            return Login(True, problem="nobody is logged in")
        answer = api.whoami(token)
    except HfHubHTTPError as error:
        status = error.response.status_code
        refused = status in (401, 403)
        return Login(refused, problem="the token is refused" if refused else f"the Hub answers {status}")
    except EXPECTED as error:
        return Login(False, problem=first_line(error))
    role = answer.get("auth", {}).get("accessToken", {}).get("role")
    return Login(True, answer.get("name"), role)


def may_read(repo_id: str) -> str:
    """Return "" if this machine's token may read a model repository, else the reason."""
    try:
        HfApi(endpoint=endpoint()).auth_check(repo_id)
    except GatedRepoError:
        return "it is gated, and access was not granted"
    except RepositoryNotFoundError:
        return "it does not exist, or needs a login"
    except EXPECTED as error:
        return first_line(error)
    return ""


def is_cached(repo_id: str, filename: str) -> bool:
    """Whether a file of a model repository is in the cache, at its main revision."""
    return isinstance(found := try_to_load_from_cache(repo_id, filename), str) and Path(found).exists()
