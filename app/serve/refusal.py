"""What a client did wrong, or what the server cannot do now, as OpenAI's errors say it."""

from http import HTTPStatus

from kvcache.errors import EmberError

_INVALID = "invalid_request_error"
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "server_error",
}


class RefusalError(EmberError):
    """A request that is not answered. code: for programs, where OpenAI has a word for it."""

    def __init__(
        self,
        message: str,
        *,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def as_dict(self) -> dict[str, object]:
        """As `openai` clients read it."""
        kind = _TYPES.get(self.status, _INVALID)
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}
