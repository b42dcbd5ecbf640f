"""Who sends a request, and what they may do: tokens, private and gated repositories."""

import hashlib
import hmac
import json
import os
import secrets
import string
from dataclasses import dataclass
from pathlib import Path

from depi.errors import UserError
from depi.files import read_json, remove_drafts
from depi.hub.names import RequestError
from depi.hub.server.repos import Repo

OWNER = "depi"
READER = "reader"


@dataclass(frozen=True)
class Caller:
    """Who sent a request; `user` is None without a token."""

    user: str | None
    can_write: bool


ANONYMOUS = Caller(None, False)


class Access:
    """The rules of the real Hub for the two users that an embedded one has: an owner and a reader."""

    def __init__(self, write_token: str, read_token: str):
        self.write_token = write_token
        self.read_token = read_token

    @classmethod
    def load(cls, root: Path) -> "Access":
        """Read `root`/tokens.json; without one, make two tokens, in a file that only its owner may read."""
        path = root / "tokens.json"
        if not path.exists():
            alphabet = string.ascii_letters + string.digits
            made = {kind: "hf_" + "".join(secrets.choice(alphabet) for _ in range(34)) for kind in _KINDS}
            remove_drafts(path)
            draft = root / f".tokens.json.{secrets.token_hex(8)}.tmp"
            with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                json.dump(made, file, indent=2)
            draft.replace(path)
        path.chmod(0o600)
        tokens = read_json(path)
        found = [tokens.get(kind) for kind in _KINDS] if isinstance(tokens, dict) else [None]
        if not all(isinstance(token, str) and token for token in found):
            raise UserError(f"{path} holds no tokens: delete it, and new ones are made")
        return cls(tokens["write"], tokens["read"])

    def identify(self, authorization: str | None) -> Caller:
        """Return who sent this Authorization header.

        Raises:
            RequestError: 401, the token is not known here.
        """
        if not authorization:
            return ANONYMOUS
        token = authorization.removeprefix("Bearer ").strip()
        if hmac.compare_digest(token.encode(), self.write_token.encode()):
            return Caller(OWNER, can_write=True)
        if hmac.compare_digest(token.encode(), self.read_token.encode()):
            return Caller(READER, can_write=False)
        raise RequestError(401, "Invalid credentials in Authorization header")

    def sign(self, text: str) -> str:
        """Return a signature, which proves that this server issued an upload address."""
        return hmac.new(self.write_token.encode(), text.encode(), hashlib.sha256).hexdigest()

    def is_signed(self, text: str, signature: str) -> bool:
        """Say whether `sign` made this signature of `text`."""
        return hmac.compare_digest(self.sign(text).encode(), signature.encode())


_KINDS = ("write", "read")


def missing_repo(caller: Caller) -> RequestError:
    """Return the answer for repositories that do not exist, or not for this caller."""
    if caller.user is None:
        return RequestError(401, "Invalid username or password.", "RepoNotFound")
    return RequestError(404, "Repository not found", "RepoNotFound")


def require_read(repo: Repo | None, caller: Caller) -> Repo:
    """Return a repository whose existence and metadata the caller may see."""
    if repo is None or (repo.settings.private and caller.user is None):
        raise missing_repo(caller)
    return repo


def require_content(repo: Repo | None, caller: Caller) -> Repo:
    """Return a repository whose files the caller may read; gated ones need granted access."""
    repo = require_read(repo, caller)
    if not repo.settings.gated or caller.can_write or caller.user in repo.settings.accepted:
        return repo
    if caller.user is None:
        text = f"Access to {repo.repo_type} {repo.id} is restricted. You must have access to it and be "
        raise RequestError(401, text + "authenticated to access it. Please log in.", "GatedRepo")
    text = f"Access to {repo.repo_type} {repo.id} is restricted and you are not in the authorized list."
    raise RequestError(403, text, "GatedRepo")


def require_write(caller: Caller) -> str:
    """Return the user's name, or refuse callers without a write token."""
    if caller.user is None:
        raise RequestError(401, "Invalid username or password.")
    if not caller.can_write:
        raise RequestError(403, "This token has no write permission: use a token with write access")
    return caller.user


def ask_access(repo: Repo, caller: Caller) -> None:
    """Let the caller through an automatic gate, or put them on the owner's list."""
    if caller.user is None:
        raise RequestError(401, "Invalid username or password.")
    kind = "accepted" if repo.settings.gated == "auto" else "requested"
    users: list[str] = getattr(repo.settings, kind)
    if caller.user not in users:
        repo.change_settings(**{kind: [*users, caller.user]})


def decide_access(repo: Repo, user: str, accepted: bool) -> None:
    """Accept or reject a user at the gate of a repository."""
    others = [name for name in repo.settings.accepted if name != user]
    waiting = [name for name in repo.settings.requested if name != user]
    repo.change_settings(accepted=[*others, user] if accepted else others, requested=waiting)
