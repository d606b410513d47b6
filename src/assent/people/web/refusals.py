"""Requests that are not answered as they were meant to be: the status, a word for programs, and why, for people."""

from __future__ import annotations


class Refused(Exception):
    """`code` is the word for programs; `wait` are the seconds after which to ask again."""

    def __init__(self, status: int, code: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.wait = None if wait is None else 1 + int(wait)
        self.allow = ""
        """Methods that are answered there."""

    @property
    def headers(self) -> dict[str, str]:
        wait = {} if self.wait is None else {"Retry-After": str(self.wait)}
        allow = {"Allow": self.allow} if self.allow else {}
        return wait | allow | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


class TooLarge(Refused):
    """A request, or an answer in it, that is larger than one may be."""

    def __init__(self, message: str) -> None:
        super().__init__(413, "too_large", message)
