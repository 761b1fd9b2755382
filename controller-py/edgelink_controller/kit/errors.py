"""What can go wrong, as values with a stable code; over HTTP they become RFC 9457 problem documents."""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """A refusal that the caller can act on. Subclasses fix the HTTP status and the code."""

    status = 400
    code = "bad_request"
    title = "The request cannot be carried out"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra

    def document(self) -> dict[str, Any]:
        return {
            "type": f"urn:edgelink:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            **self.extra,
        }


class NotFound(Problem):
    status, code, title = 404, "not_found", "There is no such thing"


class Conflict(Problem):
    status, code, title = 409, "conflict", "This contradicts what exists"


class Invalid(Problem):
    status, code, title = 422, "invalid", "A value is not acceptable"


class Unauthenticated(Problem):
    status, code, title = 401, "unauthenticated", "Sign in first"


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "This account may not do that"


class Locked(Problem):
    status, code, title = 429, "locked", "Too many failures"


class NoFreeAddress(Problem):
    status, code, title = 409, "no_free_address", "The network is full"


class ReadOnlySetting(Problem):
    status, code, title = 409, "read_only", "The setting is fixed by a file or the environment"
