"""What a server takes at most, and how a request beyond it is refused."""

from dataclasses import dataclass

USUAL_LENGTH = 2048  # for models that do not state how long a text they were made for


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server.

    Args:
        max_batch: answers that go on at the same time. max_queue: further ones that wait.
        max_length: longest prompt and answer together, in tokens. max_new_tokens: longest answer.
        max_body_bytes: longest request. max_values: numbers in an answer that holds logits.
        drain_seconds: how long answers may go on when the server is told to end.
    """

    max_batch: int = 8
    max_queue: int = 64
    max_length: int = USUAL_LENGTH
    max_new_tokens: int = 1024
    max_body_bytes: int = 1 << 20
    max_values: int = 1 << 25
    drain_seconds: int = 30


class Refused(Exception):
    """A request that is not answered; every API says so in its own shape.

    Args:
        message: what must be, what came. status: of HTTP. param: which part of the request it is about.
        code: a word for programs. retry_after: seconds, where trying again may help.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        # What came may hold half of a surrogate pair, which JSON can say and UTF-8 cannot.
        message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
